# SPDX-License-Identifier: Apache-2.0
"""Signatures by SSH keys, `ssh-keygen -Y`: who signed a text, and whether it is somebody that the site knows."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

#: What a manifest of a model is signed for, so that a signature under anything else of the same key is none of it.
MODEL = "h20-fleet-model"


class SignatureError(Exception):
    """Nobody known has signed, or nobody can; the text says why and what to do."""


class UnsignedError(SignatureError):
    """The signature is none of this text."""


class UnknownSignerError(SignatureError):
    """The text is signed, by the key `fingerprint`, which is none of the known signers'."""

    def __init__(self, fingerprint: str) -> None:
        super().__init__(fingerprint)
        self.fingerprint = fingerprint


class Keygen:
    """ssh-keygen, for signatures in one namespace."""

    def __init__(self, namespace: str, program: str = "ssh-keygen") -> None:
        self.namespace = namespace
        self.program = program

    def run(self, *arguments: str, data: str = "") -> tuple[int, str]:
        """Status and answer of ssh-keygen, which reads ``data``."""
        try:
            done = subprocess.run(
                [self.program, *arguments],
                input=data,
                capture_output=True,
                check=False,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError as error:
            raise SignatureError(f"{self.program} is not here -> install the package openssh-client") from error
        return done.returncode, (done.stdout + done.stderr).strip()

    def fingerprint(self, key: str) -> str:
        """Fingerprint of a private key; SignatureError where it cannot sign."""
        status, public = self.run("-y", "-P", "", "-f", key)
        if status:
            raise SignatureError(
                f"{key} cannot sign: {public} -> make a key without a passphrase: ssh-keygen -t ed25519 -N '' -C fleet -f {key}"
            )
        status, told = self.run("-l", "-f", "-", data=f"{public}\n")
        return told.split()[1] if status == 0 else ""

    def signed_by(self, text: str, signature: Path) -> str:
        """Fingerprint of the key that signed the text, "" where nobody did."""
        if not signature.is_file():
            return ""
        status, told = self.run("-Y", "check-novalidate", "-n", self.namespace, "-s", str(signature), data=text)
        found = re.search(r"SHA256:\S+", told)
        return found[0] if status == 0 and found else ""

    def sign(self, key: str, path: Path) -> Path:
        """Sign a file; the signature appears whole, beside it, with the suffix .sig. Raises SignatureError."""
        signature = path.with_name(f"{path.name}.sig")
        signature.unlink(missing_ok=True)
        status, told = self.run("-Y", "sign", "-f", key, "-n", self.namespace, str(path))
        if status:
            raise SignatureError(f"ssh-keygen did not sign {path} with {key}: {told} -> see whether the key is whole")
        signature.chmod(0o644)
        return signature

    def known_signer(self, text: str, signature: Path, signers: str) -> str:
        """Name of the one of ``signers`` (text of an allowed signers file) who signed the text; raises UnsignedError or UnknownSignerError."""
        fingerprint = self.signed_by(text, signature)
        if not fingerprint:
            raise UnsignedError(f"{signature} is no signature of this text")
        with tempfile.TemporaryDirectory() as folder:
            allowed = Path(folder) / "signers"
            allowed.write_text(f"{signers.strip()}\n", encoding="utf-8")
            known = ("-f", str(allowed), "-s", str(signature))
            status, told = self.run("-Y", "find-principals", *known)
            principal = told.splitlines()[0] if status == 0 and told else ""
            if principal:
                status, _told = self.run("-Y", "verify", "-n", self.namespace, "-I", principal, *known, data=text)
        if not principal or status:
            raise UnknownSignerError(fingerprint)
        return principal


def model_signer(name: str, text: str, signature: str, signers: str, program: str = "ssh-keygen") -> str:
    """Who of ``signers`` signed the manifest of a model called ``name``; raises SignatureError with what to do."""
    resign = f"sign it once it is reviewed: ssh-keygen -Y sign -n {MODEL} -f KEY {name}"
    if not signature:
        raise SignatureError(f"{name} has no signature, and fleet_model_signers asks for one -> {resign}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.sig"
        path.write_text(signature, encoding="utf-8")
        try:
            return Keygen(MODEL, program).known_signer(text, path, signers)
        except UnsignedError as error:
            raise SignatureError(
                f"the signature of {name} is not one of it as it is, for {MODEL}: one of the two was changed -> restore both, or {resign}"
            ) from error
        except UnknownSignerError as error:
            raise SignatureError(
                f"{name} was signed by the key {error.fingerprint}, which is none of fleet_model_signers for {MODEL}"
                " -> use a manifest of a known signer, or add that public key once you know whose it is"
            ) from error


def read_signature(path: Path) -> str:
    """The signature in a file, "" where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
