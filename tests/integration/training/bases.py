"""Small base models and snapshots, made in seconds: real architectures and tokenizers with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GOOD, BAD = ("good", "lovely", "clean", "kind"), ("bad", "awful", "dirty", "rude")
_NEUTRAL = ("the", "room", "was", "and", "staff", "very", "hotel", "again")


def make_language_model(folder: Path) -> Path:
    """A Llama of two layers with a byte-level tokenizer and a chat template, context 256."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join((*GOOD, *BAD, *_NEUTRAL))], trainer)
    make_tokenizer: Any = PreTrainedTokenizerFast
    fast = make_tokenizer(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_encoder(folder: Path) -> Path:
    """A BERT of two layers that knows the words of `write_reviews`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *_NEUTRAL]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    make_tokenizer: Any = PreTrainedTokenizerFast
    fast = make_tokenizer(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_reviews(folder: Path) -> Path:
    """A snapshot whose label and headline follow from one word of the text."""
    rows = []
    for number in range(96):
        label, words = (("positive", GOOD), ("negative", BAD))[number % 2]
        word, rest = words[number // 2 % 4], _NEUTRAL[number % 8 :] + _NEUTRAL[: number % 8]
        rows.append(
            {
                "record_id": f"rec_{number:03}",
                "source": "test",
                "text": " ".join((*rest[:4], word, *rest[4:])),
                "label": label,
                "headline": f"{word} hotel",
            }
        )
    return write_snapshot(folder, rows[24:], rows[:24])


def write_snapshot(folder: Path, train: Sequence[dict[str, str]], holdout: Sequence[dict[str, str]]) -> Path:
    """A snapshot as cleaning lays it out, as far as training reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(train)), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(list(holdout)), folder / "holdout.parquet")
    return folder
