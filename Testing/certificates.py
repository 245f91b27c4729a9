"""Certificates for tests of TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def self_signed(folder: Path) -> Path:
    """A certificate of 127.0.0.1 and backend.example that signs itself, with its key behind it in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    both, key = folder / "backend.pem", folder / "key.pem"
    names = "subjectAltName=IP:127.0.0.1,DNS:backend.example"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=backend", "-addext", names, "-keyout", str(key), "-out", str(both)]
    subprocess.run([openssl, *made], check=True, capture_output=True)
    both.write_text(both.read_text() + key.read_text())
    return both
