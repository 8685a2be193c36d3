"""Pairs that differ in one kind of word, and tiny checkpoints of transformers to learn from them."""

import json
import random
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    LlamaConfig,
)

ROOT = Path(__file__).resolve().parents[1]
GOOD, BAD, OTHER = ("happy", "lovely"), ("sad", "awful"), ("the", "cat", "ran", "home", "and", "saw", "a", "tree")


def write_pairs(path: Path, count: int = 40, seed: int = 0) -> Path:
    """The preferred answer has happy words and the other one sad ones, among words that both may have."""
    draw = random.Random(seed)

    def answer(words) -> str:
        found = [draw.choice(OTHER) for _ in range(draw.randint(2, 5))]
        for _ in range(2):
            found.insert(draw.randint(0, len(found)), draw.choice(words))
        return " " + " ".join(found) + "."

    prompts = ("One day", "Once", "At night", "Then")
    lines = [{"prompt": draw.choice(prompts), "chosen": answer(GOOD), "rejected": answer(BAD)} for _ in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tiny(kind: str, directory: Path) -> Path:
    """A random gpt2 or llama language model, or a DeBERTa classifier, on the tokens of the shipped stories."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "example/stories")
    if kind == "deberta":
        tokenizer.add_special_tokens(
            {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
        )
        model = DebertaV2ForSequenceClassification(
            DebertaV2Config(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_labels=1, relative_attention=True, pos_att_type=["p2c", "c2p"], pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
    elif kind == "gpt2":
        model = AutoModelForCausalLM.from_config(
            GPT2Config(vocab_size=2048, n_embd=16, n_layer=2, n_head=2, n_positions=128, bos_token_id=0, eos_token_id=0)
        )
    else:
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=2048, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
