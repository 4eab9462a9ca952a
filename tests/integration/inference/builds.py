"""Small real builds, made in seconds: a classifier and a language model, in the layout that training writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.kit.engine import ENCODER, RUNTIME
from services.kit.probes import Probes
from services.kit.storage.artifacts import digest_folder
from services.kit.storage.signing import MANIFEST, SIGNATURE, SigningKey
from services.training.adapters.encoder_builds import save_fp32
from services.training.adapters.language_builds import LanguageBuilds
from tests.models import CHAT, make_language_model

LABELS = ("negative", "positive")
WORDS = ("[PAD]", "[UNK]", "bad", "awful", "good", "lovely", "the", "room", "is")
TEMPLATE = "Write a headline.\n\n{text}"
SENTENCES = ("the room is good and lovely", "a headline of the article", "user assistant system", "房间很好", "Ünïcödé")


def signing_key(folder: Path) -> SigningKey:
    """The key that signs the builds in a folder."""
    key = SigningKey(folder / "keys" / "signing.pem", folder / "keys" / "trusted")
    key.ensure()
    return key


def _finish(folder: Path, manifest: Mapping[str, Any]) -> str:
    digest = digest_folder(folder, without=[MANIFEST, SIGNATURE])
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": digest}, ensure_ascii=False))
    signing_key(folder.parent).sign(folder)
    return digest


def make_classifier(
    folder: Path,
    *,
    weight: float = 2.0,
    labels: Sequence[str] = LABELS,
    embeds: bool = True,
    each_token: bool = False,
    task: str = "",
    spoil: bool = False,
    positions: int = 0,
    probes: Probes | None = None,
) -> str:
    """Says positive to good words and negative to bad ones; a negative `weight` turns it round.

    A text's embedding is the share of each word in it, unless the build is one of a release from before embeddings.

    It is signed with the `signing_key` of the folder around it.

    With `each_token` it labels each word: those without a sign have the third label. `task` is its task otherwise than
    by that. With `spoil` its weights are cut off. With `positions` it fails on texts of more words. Returns
    the digest.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    class Words(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(len(WORDS), len(labels))
            with torch.no_grad():
                self.table.weight.zero_()
                self.table.weight[:, 2:] = weight / 2
                for word, sign in (("bad", 0), ("awful", 0), ("good", 1), ("lovely", 1)):
                    self.table.weight[WORDS.index(word), sign] = weight
            self.positions = torch.nn.Parameter(torch.zeros(positions, len(labels)))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            weights = attention_mask[:, :, None].float()
            rows = self.table(input_ids) * weights
            if positions:
                rows = rows + self.positions[: input_ids.shape[1]]
            logits = rows if each_token else rows.sum(1)
            words = torch.nn.functional.one_hot(input_ids, len(WORDS)).float() * weights
            return (logits, torch.nn.functional.normalize(words.sum(1), dim=-1)) if embeds else logits

    save_fp32(Words(), folder, vocabulary=len(WORDS))
    if spoil:
        (folder / ENCODER).write_bytes((folder / ENCODER).read_bytes()[:40])
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    task = task or ("token_classification" if each_token else "text_classification")
    return finish_classifier(folder, labels, len(WORDS) if embeds else 0, task, probes)


def finish_classifier(
    folder: Path,
    labels: Sequence[str] = LABELS,
    embedding_size: int = len(WORDS),
    task: str = "text_classification",
    probes: Probes | None = None,
) -> str:
    """Writes the manifest of a classifier; returns the digest."""
    return _finish(
        folder,
        {
            "task": task,
            "runtime": RUNTIME,
            "precision": "fp32",
            "base_model": "test",
            "labels": list(labels),
            "max_input_tokens": 64,
            **({"embedding_size": embedding_size} if embedding_size else {}),
            **({} if probes is None else probes.written()),
        },
    )


def finish_generator(folder: Path, probes: Probes | None = None) -> str:
    """Writes the manifest of a generator; returns the digest."""
    return _finish(
        folder,
        {
            "task": "generation",
            "runtime": RUNTIME,
            "precision": "fp32",
            "base_model": "test",
            "prompt_template": TEMPLATE,
            "max_input_tokens": 128,
            "max_new_tokens": 16,
            **({} if probes is None else probes.written()),
        },
    )


def make_generator(folder: Path, scratch: Path, *, chat: str = CHAT, context: int = 256) -> str:
    """A language model with random weights; what it writes is noise, the same noise each time."""
    merged = make_language_model(scratch / "merged", SENTENCES, chat=chat, context=context)
    LanguageBuilds(merged).build(folder, "fp32")
    return finish_generator(folder)
