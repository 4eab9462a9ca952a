"""A seq2seq model of a few thousand random weights: it translates nothing, but every step is the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def make_translator(folder: Path, words: Sequence[str], seed: int) -> None:
    """Writes a T5 with a vocabulary of words, which ends each answer at its limit at the latest."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    ends: dict[str, Any] = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    config = T5Config(vocab_size=len(vocabulary), initializer_factor=5.0, **sizes, **ends)
    model = T5ForConditionalGeneration(config)
    model.generation_config.forced_eos_token_id = 1
    model.generation_config.suppress_tokens = [0, 2]
    model.save_pretrained(folder)


def translation(folder: Path, max_tokens: int) -> Callable[[str], str]:
    """What the model makes of a text by its most probable words, in this process."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)

    def translate(text: str) -> str:
        given = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**given, max_new_tokens=max_tokens, do_sample=False)
        return str(tokenizer.decode(made[0], skip_special_tokens=True)).strip()

    return translate
