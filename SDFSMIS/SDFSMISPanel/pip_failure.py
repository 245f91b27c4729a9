"""Pip failure: why pip did not install, in a sentence for people who have never heard of pip."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["pip_failure"]

NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Failed to establish|name resolution|"
    r"getaddrinfo|Network is unreachable|Connection (refused|reset|aborted)|ConnectionResetError|RemoteDisconnected|"
    r"timed out"
)
MISSING = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+)")

KINDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"No space left on device|Errno 28\b|WinError 112\b|not enough space", re.IGNORECASE),
        "The disk became full while installing; free some space, and install again.",
    ),
    (
        re.compile(r"ProxyError|Proxy Authentication|Tunnel connection failed|Cannot connect to proxy"),
        "The proxy of this network did not let the download through; ask your IT department for its address, and give "
        "it as pip option: --proxy http://user:password@computer:port.",
    ),
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError"),
        "The certificate of the download site is not trusted, as happens where a network inspects traffic; ask your "
        "IT department for its certificate, and give it as pip option: --cert FILE.",
    ),
    (
        NETWORK,
        "The download site cannot be reached; check the network connection, and install again, or give the mirror of "
        "your institution as pip option: --index-url ADDRESS.",
    ),
    (
        re.compile(r"Permission denied|Access is denied|Errno 13\b|WinError 5\b|WinError 32\b"),
        "A file cannot be written; end the programs that use the environment, name a folder that you may write to, "
        "and install again.",
    ),
    (
        re.compile(r"DO NOT MATCH THE HASHES|IncompleteRead|Connection broken|incomplete download", re.IGNORECASE),
        "A download arrived damaged; install again.",
    ),
    (
        re.compile(r"no such option|pip (install|<command>) \[options\]|option requires|invalid .*choice"),
        "pip does not accept the pip options; correct them.",
    ),
)


def pip_failure(lines: Sequence[str]) -> str:
    """What went wrong and what to do, in one sentence.

    Args:
        lines: that pip wrote, the last ones at least.
    """
    text = "\n".join(lines)
    for pattern, sentence in KINDS:
        if pattern.search(text):
            return sentence
    missing = MISSING.search(text)
    if missing is not None:
        return (
            f"The package {missing[1]} is not there for this computer's Python; give an index that has it as "
            "pip option: --index-url ADDRESS, or name another Python."
        )
    errors = [line for line in lines if line.startswith("ERROR:")] or list(lines)
    last = errors[-1].removeprefix("ERROR:").strip() if errors else "it said nothing"
    return f"pip could not install the packages ({last}); the log says more, and installing again may help."
