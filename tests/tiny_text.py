"""Tiny LLaDA and Dream checkpoints that read text, and tiny data sets to ask them."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VECTORS = Path(__file__).parent / "vectors"
CHAT = "{% for message in messages %}<user>{{ message['content'] }}<eot>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
SPECIAL = {"<user>": 97, "<assistant>": 98, "<eot>": 99, "<mask>": 120}


def backbone(name: str, directory: Path, max_length: int = 512, favours: str = "17 ") -> Path:
    """`llada` or `dream`: the reference checkpoint with a tokenizer of characters and a longer context. favours: characters that it
    mostly writes, so that some short numbers are right."""
    shutil.copytree(VECTORS / f"{name}-tiny", directory)
    config = json.loads((directory / "config.json").read_text())
    config["max_sequence_length" if name == "llada" else "max_position_embeddings"] = max_length
    (directory / "config.json").write_text(json.dumps(config))
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    head = "model.transformer.ff_out.weight" if name == "llada" else "lm_head.weight"
    weights = load_file(directory / index[head])
    weights[head][[ord(character) - 31 for character in favours]] *= 4
    save_file(weights, directory / index[head], {"format": "pt"})
    special = SPECIAL | {"<end>": config["eos_token_id"]}
    characters = {chr(code): code - 31 for code in range(32, 127)} | {"\n": 0}
    tokenizer = Tokenizer(models.WordLevel(characters | special, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", mask_token="<mask>",
        additional_special_tokens=["<user>", "<assistant>", "<eot>"], chat_template=CHAT,
    )  # fmt: skip
    wrapped.save_pretrained(directory)
    return directory


def questions(directory: Path) -> Path:
    """Training files of gsm8k, math and kodcode, of eight, six and six questions; the last of the first two are long."""
    rows = {
        "gsm8k": [
            (f"{n} of {n % 2} = ?" + " Why?" * 30 * (n == 7), f"It is {1 + 6 * (n % 2)}.\n#### {1 + 6 * (n % 2)}")
            for n in range(8)
        ],
        "math": [(f"What is {n}/2?" + " Why?" * 30 * (n == 5), f"It is $\\boxed{{{n}/2}}$.") for n in range(6)],
    }
    for name, pairs in rows.items():
        (directory / name).mkdir(parents=True)
        text = "".join(json.dumps({"question": asked, "answer": answer}) + "\n" for asked, answer in pairs)
        (directory / name / "train.jsonl").write_text(text)
    (directory / "kodcode").mkdir()
    shared = Path(__file__).parent / "questions" / "kodcode" / "train.jsonl"
    usable = shared.read_text().splitlines(keepends=True)[0]
    (directory / "kodcode" / "train.jsonl").write_text(usable * 6)
    return directory
