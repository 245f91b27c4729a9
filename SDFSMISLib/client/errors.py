"""What can go wrong with a backend, in sentences that a clinician understands."""

from __future__ import annotations

from SDFSMISLib.wire import PROTOCOL

__all__ = [
    "BackendBusy",
    "BackendError",
    "BackendFailed",
    "BackendNotRunning",
    "BackendUnreachable",
    "CertificateNotTrusted",
    "ConnectionLost",
    "NotABackend",
    "RequestRefused",
    "ScanTooLarge",
    "SlicesMissing",
    "TokenRefused",
    "VersionMismatch",
    "error_of_answer",
    "printable",
    "version_mismatch",
]


LONGEST_TEXT = 500  # characters


class BackendError(RuntimeError):
    """An error of a backend: one or two sentences, to be shown as they are, that say what to do.

    ``is_temporary`` says that the cause may soon be gone, so that trying again makes sense.
    """

    is_temporary = False


class BackendNotRunning(BackendError):
    """The computer can be reached, but no backend runs on it."""

    is_temporary = True


class BackendUnreachable(BackendError):
    """The computer is unknown or cannot be reached."""

    is_temporary = True


class NotABackend(BackendError):
    """Another program than a backend answers."""


class TokenRefused(BackendError):
    """The token is missing or wrong."""


class VersionMismatch(BackendError):
    """Backend and program have different protocols."""


class BackendBusy(BackendError):
    """The backend accepts nothing now; ``retry_after`` is the number of seconds to wait, if it gave one."""

    is_temporary = True

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class ScanTooLarge(BackendError):
    """The request is beyond the backend's limits."""


class ConnectionLost(BackendError):
    """The connection broke."""

    is_temporary = True


class CertificateNotTrusted(BackendError):
    """The backend's certificate is not trusted."""


class RequestRefused(BackendError):
    """The backend says that the request is invalid; the text is the backend's."""


class BackendFailed(BackendError):
    """The backend has a defect, or has ended."""


class SlicesMissing(BackendError):
    """The backend no longer has all slices that it needs; they must be sent again."""

    is_temporary = True


def version_mismatch(name: str, theirs: object) -> VersionMismatch:
    """The error for a backend with the protocol ``theirs``."""
    older = str(theirs).isdigit() and int(str(theirs)) < PROTOCOL
    side = "the backend" if older else "this program"
    return VersionMismatch(
        f"The backend at {name} speaks protocol {theirs!s:.20} and this program protocol {PROTOCOL}. Update {side}."
    )


def printable(text: object) -> str:
    """A backend's text as one line of printable characters, of limited length, so that it can be shown."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)[:4096]).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]} …"


def error_of_answer(name: str, status: int, code: str, message: str, retry_after: float | None = None) -> BackendError:
    """The exception for an error that a backend has answered.

    Args:
        name: of the backend, for messages.
        status: of HTTP; 0 for an error record within a stream.
        code, message: of the error record.
        retry_after: seconds to wait, if the backend gave them.
    """
    message = printable(message)
    detail = f": {message}" if message else "."
    if status in (404, 405):
        return NotABackend(f"There is no backend under the address {name}; give it as http://computer:7861.")
    if code == "token_missing":
        return TokenRefused(f"The backend at {name} asks for a token. Enter the one that it was started with.")
    if code == "token_wrong" or status == 401:
        return TokenRefused(f"The backend at {name} does not accept the token. Enter the one that it was started with.")
    if code == "slices_missing":
        return SlicesMissing(f"The backend at {name} does not keep the slices that are sent to it. Try again later.")
    if code == "protocol_mismatch":
        return VersionMismatch(f"The backend at {name} speaks another protocol{detail} Update the older of the two.")
    if code in ("queue_full", "stopping") or status == 503:
        what = "is being stopped or restarted" if code == "stopping" else "is busy with other runs"
        return BackendBusy(f"The backend at {name} {what}. Try again in a few minutes.", retry_after)
    if code == "stalled":
        return ConnectionLost(f"The backend at {name} waited too long for this program. Try again.")
    if code == "out_of_memory":
        return ScanTooLarge(f"{message} Give fewer painted slices, or use a backend with more memory.")
    if code == "too_large" or status == 413:
        return ScanTooLarge(f"The backend at {name} does not take so much{detail} Segment fewer slices at once.")
    if code in ("invalid_input", "invalid_request", "bad_request") or 400 <= status < 500:
        return RequestRefused(message or f"The backend at {name} refuses the request ({status}).")
    return BackendFailed(f"The backend at {name} failed{detail} Try again; where it fails again, its log says more.")
