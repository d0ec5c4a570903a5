"""Signatures of bundles: minisign's own, to the byte, and no bundle that lacks the right one is read."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sampler.export import __main__ as export
from edge_sampler.export import extend
from edge_sampler.export.sign import signer
from edge_sampler.runtime import __main__ as runtime
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST
from edge_sampler.runtime.sampler import load
from edge_sampler.runtime.signature import SIGNATURE, check_signature
from tests.bundles import remake_manifest
from tests.conftest import run_main
from tests.dying import bundle

minisign = pytest.importorskip("minisign")

# Made by minisign 0.11: -G -W, and -S of a manifest.json of b"{}\n". No other thing is signed by this key.
PUBLIC = """untrusted comment: minisign public key 4B4E81E87C383F50
RWRQPzh86IFOSykMNJ+QAHJglkyAqNGAhjjP4oqKbsJNAJPLy79U5nKD
"""
SECRET = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAUD84fOiBTkvN+sOO28o31QkV06n6CeuAoEPg3c0ocfqh\
cIXv/Qc2rykMNJ+QAHJglkyAqNGAhjjP4oqKbsJNAJPLy79U5nKDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
SIGNED = """untrusted comment: signature from minisign secret key
RURQPzh86IFOS+qRlWvZ/ky0sGWjitaFcm+Hc+GT3fAYwdB9L3jzIBTCdL0yT3gTQ9e+80GFooCbjH4MXmGGkUrcae+yI/U6hQ4=
trusted comment: timestamp:1795790929	file:manifest.json	hashed
dF2UCxmaxT5PTO7HPwggR4brxAtavcZZG3SfTPnuQ9rBQGv22aj3JUURPTOYKE2dC5v7bs7TT6SSV5sebKl0BA==
"""
SIGNED_AT = 1795790929.5
MINE = """
import edge_sampler
import torch

class Half(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        return self.weight * x

def make():
    return edge_sampler.adapt(Half(), shape=(2,), precond="FlowPrecond", num_train_timesteps=1)
"""


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A secret and a public one."""
    (tmp_path / "fleet.key").write_text(SECRET)
    (tmp_path / "fleet.pub").write_text(PUBLIC)
    return tmp_path / "fleet.key", tmp_path / "fleet.pub"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A bundle that opens, though no library could run it."""
    bundle(tmp_path, "no graph")
    return tmp_path / "b"


def test_minisigns_signature_is_ours_to_the_byte(keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    secret, public = keys
    folder = public.parent
    (folder / MANIFEST).write_bytes(b"{}\n")
    monkeypatch.setattr("time.time", lambda: SIGNED_AT)
    signer(secret)(folder)
    assert (folder / SIGNATURE).read_text() == SIGNED
    check_signature(b"{}\n", folder, public)
    with pytest.raises(UserError, match="is not what the key 4B4E81E87C383F50 signed"):
        check_signature(b"{} \n", folder, public)


@pytest.mark.skipif(not shutil.which("minisign"), reason="needs the program minisign")
@pytest.mark.parametrize("form", [[], ["-l"]], ids=["hashed", "legacy"])
def test_minisign_itself_agrees(form: list[str], small: Path, keys: tuple[Path, Path]) -> None:
    secret, public = keys
    subprocess.run(["minisign", "-S", *form, "-s", secret, "-m", small / MANIFEST], check=True, input=b"\n")
    Bundle.open(small, public)
    signer(secret)(small)
    subprocess.run(["minisign", "-V", "-p", public, "-m", small / MANIFEST], check=True)


def test_what_is_signed_opens(small: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    secret, public = keys
    run_main(export.main, "sign", str(small), "--key", str(secret))
    assert "manifest.json.minisig: signed" in capsys.readouterr().out
    assert (
        Bundle.open(small, public).manifest == Bundle.open(small).manifest == Bundle.open(small, str(public)).manifest
    )
    run_main(runtime.main, "inspect", str(small), "--verify-key", str(public))


def unsigned(small: Path, secret: Path) -> None:
    pass


def of_another_key(small: Path, secret: Path) -> None:
    (small / SIGNATURE).write_bytes(bytes(minisign.KeyPair.generate().secret_key.sign((small / MANIFEST).read_bytes())))


def of_another_bundle(small: Path, secret: Path) -> None:
    bundle(small / "other", "another graph")
    signer(secret)(small / "other" / "b")
    shutil.copy(small / "other" / "b" / SIGNATURE, small / SIGNATURE)


def changed_with_its_hashes(small: Path, secret: Path) -> None:
    signer(secret)(small)
    (small / "sampler.onnx").write_text("another graph")
    remake_manifest(small)
    Bundle.open(small).file("sampler.onnx")  # which its hashes let pass


def no_manifest_at_all(small: Path, secret: Path) -> None:
    """Then who asks for a signature must not be told of the JSON: it would have been read."""
    signer(secret)(small)
    (small / MANIFEST).write_text("{")


def damaged(small: Path, secret: Path) -> None:
    signer(secret)(small)
    text = (small / SIGNATURE).read_text()
    (small / SIGNATURE).write_text(text[:-20])


def with_another_comment(small: Path, secret: Path) -> None:
    signer(secret)(small)
    text = (small / SIGNATURE).read_text()
    (small / SIGNATURE).write_text(text.replace("timestamp:", "timestamp:9"))


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (unsigned, "is not signed"),
        (of_another_key, r"is signed by the key [0-9A-F]{16}, and .*fleet.pub is 4B4E81E87C383F50"),
        (of_another_bundle, "is not what the key"),
        (changed_with_its_hashes, "is not what the key"),
        (no_manifest_at_all, "is not what the key"),
        (damaged, "is no signature of minisign"),
        (with_another_comment, "is not what the key"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_anything_else_is_refused(
    attack: Callable[[Path, Path], None], message: str, small: Path, keys: tuple[Path, Path]
) -> None:
    secret, public = keys
    attack(small, secret)
    for use in (Bundle.open, lambda folder, key: load(folder, "onnxrt", verify_key=key)):
        with pytest.raises(UserError, match=message):
            use(small, public)


def test_whose_key_it_is_is_told(small: Path, keys: tuple[Path, Path]) -> None:
    secret, public = keys
    signer(secret)(small)
    public.write_bytes(bytes(minisign.KeyPair.generate().public_key))
    with pytest.raises(UserError, match=r"is signed by the key 4B4E81E87C383F50, and .*fleet\.pub is [0-9A-F]{16}$"):
        Bundle.open(small, public)


@pytest.mark.parametrize(
    "command",
    [
        "runtime sample B --out a.npz",
        "runtime compare B",
        "runtime bench B",
        "runtime inspect B",
        "runtime doctor B",
        "runtime generate B --seeds 0-1 --out shards",
        "runtime serve B --host 256.0.0.1",
        "runtime page B --out site",
        "export card B",
        "export triton B --out models",
        "export engine B --precision fp16",
    ],
)
def test_every_command_asks(
    command: str, small: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    before = {path.name for path in small.parent.rglob("*")}
    room, *arguments = command.replace("B", str(small)).split()
    with pytest.raises(UserError, match="is not signed"):
        run_main({"runtime": runtime.main, "export": export.main}[room], *arguments, "--verify-key", str(keys[1]))
    assert {path.name for path in small.parent.rglob("*")} == before


def test_a_key_without_a_bundle_verifies_nothing(keys: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="is for a bundle"):
        run_main(runtime.main, "doctor", "--verify-key", str(keys[1]))


def test_what_is_no_key_is_named(small: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    secret, public = keys
    signer(secret)(small)
    for key, message in (
        (secret, "is no public key"),
        (tmp_path / "absent", "cannot read the public key"),
        (small, "it is no file"),
    ):
        with pytest.raises(UserError, match=message):
            Bundle.open(small, key)
    for key, message in (
        (public, "is no secret key"),
        (tmp_path / "absent", "cannot read the secret key"),
        (small, "it is no file"),
    ):
        with pytest.raises(UserError, match=message):
            signer(key)
    halves = minisign.SecretKey.from_file(secret)
    halves._keynum_sk.secret_key[0] ^= 1
    secret.write_bytes(bytes(halves))
    with pytest.raises(UserError, match=r"cannot sign with .*: signature verification failed"):
        signer(secret)


def test_no_key_is_read_without_the_library(keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minisign", None)
    with pytest.raises(UserError, match=r"minisign is not installed, and signatures need it: pip install .*\[sign\]"):
        check_signature(b"", keys[1].parent, keys[1])


def test_a_password_opens_a_key(
    small: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret, public = keys
    pair = minisign.KeyPair.generate()
    locked = pair.secret_key
    public.write_bytes(bytes(pair.public_key))
    locked.encrypt("word", opslimit=2**15, memlimit=2**20)  # as few as there can be, to be quick
    secret.write_bytes(bytes(locked))
    given = tmp_path / "given"
    for text, message in (("other\n", "wrong password"), ("", "has a password"), ("word\n", "")):
        given.write_text(text)
        with given.open() as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stream)
            if message:
                with pytest.raises(UserError, match=message):
                    signer(secret)
            else:
                signer(secret)(small)
    Bundle.open(small, public)


def test_damaged_files_are_not_signed(small: Path, keys: tuple[Path, Path]) -> None:
    (small / "sampler.onnx").write_text("other")
    with pytest.raises(UserError, match="is not the file the manifest describes"):
        run_main(export.main, "sign", str(small), "--key", str(keys[0]))
    assert not (small / SIGNATURE).exists()


def test_no_old_signature_stays_beside_a_new_manifest(small: Path, keys: tuple[Path, Path]) -> None:
    secret, public = keys
    sign = signer(secret)
    sign(small)
    with pytest.raises(UserError, match="is signed, and its new manifest must be too"):
        with extend.extended(Bundle.open(small)):
            pytest.fail("it is refused before the work")
    with pytest.raises(KeyboardInterrupt), extend.extended(Bundle.open(small), sign):
        raise KeyboardInterrupt
    Bundle.open(small, public)  # still, of what is still the same
    with extend.extended(Bundle.open(small), sign) as (_, told):
        told["nfe"] = 7
    assert Bundle.open(small, public).manifest["nfe"] == 7
    (small / SIGNATURE).unlink()
    with extend.extended(Bundle.open(small)) as (_, told):
        told["nfe"] = 8
    assert Bundle.open(small).manifest["nfe"] == 8
    assert not (small / SIGNATURE).exists()


def test_export_signs_what_it_writes_and_what_it_adds(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, public = keys
    out, added = tmp_path / "out", list[object]()

    def add(bundle: Bundle, additions: object, refit: object, sign: Callable[[Path], None]) -> str:
        assert Bundle.open(out, public).manifest == bundle.manifest
        assert SIGNATURE not in bundle.manifest["files"]
        (out / SIGNATURE).unlink()
        sign(out)
        added.append(additions)
        return ""

    monkeypatch.setattr("edge_sampler.export.command.add", add)
    (tmp_path / "mine.py").write_text(MINE)
    dry = ("--model", f"{tmp_path / 'mine.py'}:make", "--nfe", "1", "--solver", "ddim", "--check", "0")
    run_main(export.main, *dry, "--out", str(out), "--precision", "fp16", "--sign", str(secret))
    assert added
    Bundle.open(out, public)
