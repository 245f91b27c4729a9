"""What can go wrong with a backend, in sentences that a clinician understands."""

from __future__ import annotations

from SDFSMISLib.wire import PROTOCOL

__all__ = [
    "BackendBusy",
    "BackendError",
    "BackendFailed",
    "BackendNotFound",
    "BackendRefused",
    "ConnectionLost",
    "NotABackend",
    "RequestRefused",
    "ScanTooLarge",
    "SlicesMissing",
    "TlsRefused",
    "TokenRefused",
    "VersionMismatch",
    "refusal",
    "shown",
    "version_mismatch",
]


LONGEST_TEXT = 500  # characters of what a backend says


class BackendError(RuntimeError):
    """What went wrong with a backend: one or two sentences that say what to do, made to be shown as they are.

    ``passing`` says that it may be over soon by itself, so that trying again makes sense.
    """

    passing = False


class BackendRefused(BackendError):
    """The computer is there and no backend answers on it."""

    passing = True


class BackendNotFound(BackendError):
    """The computer is not there, or cannot be reached."""

    passing = True


class NotABackend(BackendError):
    """Something else than a backend answers."""


class TokenRefused(BackendError):
    """The token is missing or wrong."""


class VersionMismatch(BackendError):
    """Backend and program are of versions that do not understand each other."""


class BackendBusy(BackendError):
    """The backend takes nothing on now; ``retry_after`` is when to ask again, in seconds, where it said so."""

    passing = True

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class ScanTooLarge(BackendError):
    """The backend does not take so much."""


class ConnectionLost(BackendError):
    """The connection broke."""

    passing = True


class TlsRefused(BackendError):
    """The backend's certificate is not trusted."""


class RequestRefused(BackendError):
    """The backend says that what was asked cannot be done; its sentence."""


class BackendFailed(BackendError):
    """The backend has a defect, or ended."""


class SlicesMissing(BackendError):
    """The backend has no longer all slices that it needs; they are to be sent again."""

    passing = True


def version_mismatch(name: str, theirs: object) -> VersionMismatch:
    """The error for a backend of another protocol."""
    older = str(theirs).isdigit() and int(str(theirs)) < PROTOCOL
    side = "the backend" if older else "this program"
    return VersionMismatch(
        f"The backend at {name} speaks protocol {theirs!s:.20} and this program protocol {PROTOCOL}. Update {side}."
    )


def shown(text: object) -> str:
    """What a backend says as it may be shown: a line of printable characters, cut where it is long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)[:4096]).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]} …"


def refusal(name: str, status: int, code: str, message: str, retry_after: float | None = None) -> BackendError:
    """The error for what a backend answers instead of success.

    Args:
        name: of the backend, for people.
        status: of HTTP; 0 where it came as a record of a stream.
        code, message: of the backend's error.
    """
    message = shown(message)
    said = f": {message}" if message else "."
    if status in (404, 405):
        return NotABackend(f"There is no backend under the address {name}; give it as http://computer:7861.")
    if code == "token_missing":
        return TokenRefused(f"The backend at {name} asks for a token. Enter the one that it was started with.")
    if code == "token_wrong" or status == 401:
        return TokenRefused(f"The backend at {name} does not accept the token. Enter the one that it was started with.")
    if code == "slices_missing":
        return SlicesMissing(f"The backend at {name} does not keep the slices that are sent to it. Try again later.")
    if code == "protocol_mismatch":
        return VersionMismatch(f"The backend at {name} speaks another protocol{said} Update the older of the two.")
    if code in ("queue_full", "stopping") or status == 503:
        what = "is being stopped or restarted" if code == "stopping" else "is busy with other runs"
        return BackendBusy(f"The backend at {name} {what}. Try again in a few minutes.", retry_after)
    if code == "stalled":
        return ConnectionLost(f"The backend at {name} waited too long for this program. Try again.")
    if code == "out_of_memory":
        return ScanTooLarge(f"{message} Give fewer painted slices, or use a backend with more memory.")
    if code == "too_large" or status == 413:
        return ScanTooLarge(f"The backend at {name} does not take so much{said} Segment fewer slices at once.")
    if code in ("invalid_input", "invalid_request", "bad_request") or 400 <= status < 500:
        return RequestRefused(message or f"The backend at {name} refuses the request ({status}).")
    return BackendFailed(f"The backend at {name} failed{said} Try again; where it fails again, its log says more.")
