"""Who made a bundle: minisign's signature over manifest.json, which has the hash of every other file.

The file ``manifest.json.minisig`` is what the program minisign writes and reads (Ed25519 over BLAKE2b-512). Source:
https://jedisct1.github.io/minisign
"""

import base64
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import install_command
from edge_sampler.runtime.json_file import read_bytes

SIGNATURE = "manifest.json.minisig"


def minisign() -> Any:
    """The library py-minisign. Raises UserError where there is none."""
    try:
        import minisign
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed, and signatures need it: {install_command('sign')}") from error
    return minisign


def check_signature(manifest: bytes, folder: Path, key: Path) -> None:
    """Raises UserError unless the bundle in ``folder`` holds a signature of these very bytes by that public key."""
    public = public_key(key)
    path = folder / waiting(manifest)
    path = path if path.exists() else folder / SIGNATURE
    try:
        signature = minisign().Signature.from_bytes(read_bytes(path))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not signed, so {key} cannot verify it; whoever made it signs it: python -m export sign --help"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no signature of minisign ({error}): copy the bundle or sign it again") from error
    if key_id(signature) != key_id(public):
        raise UserError(f"{folder} is signed by the key {key_id(signature)}, and {key} is {key_id(public)}")
    try:
        public.verify(manifest, signature)
    except ValueError as error:
        raise UserError(
            f"{folder} is not what the key {key_id(public)} signed: its manifest was changed, or is another bundle's"
        ) from error


def waiting(manifest: bytes) -> str:
    """The file of a signature of these bytes, from before they are the manifest until ``settle`` renames it."""
    return f"{SIGNATURE}.{hashlib.sha256(manifest).hexdigest()[:12]}"


def settle(folder: Path) -> None:
    """The manifest's signature that waits takes the place of the one before; those of other manifests go."""
    for signature in folder.glob(f"{SIGNATURE}.*"):
        with suppress(OSError):
            fits = signature.name == waiting((folder / SIGNATURE).with_suffix("").read_bytes())
            signature.replace(folder / SIGNATURE) if fits else signature.unlink()


def public_key(path: Path) -> Any:
    """Raises UserError where the file holds none."""
    try:
        return minisign().PublicKey.from_bytes(read_bytes(path))
    except OSError as error:
        raise UserError(f"cannot read the public key {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no public key of minisign, such as minisign.pub ({error})") from error


def key_id(signed: Any) -> str:
    """Of a public key or a signature, as minisign shows it."""
    encoded = signed.to_base64() if hasattr(signed, "to_base64") else bytes(signed).splitlines()[1]
    return base64.b64decode(encoded)[2:10][::-1].hex().upper()
