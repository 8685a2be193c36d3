"""The measurement of large shapes: what it counts is what torch counts, and the command runs on a CPU."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.large import Shape, best, build, canvases, main, work

TINY = Shape(width=64, layers=3, heads=2, mlp=96, vocabulary=112, prompt=16, length=32, block=16, size=64, repeats=1)


@pytest.mark.parametrize("rows", [1, 3])
def test_products_are_counted_as_torch_counts_them(rows):
    device = torch.device("cpu")
    model, canvas = build(TINY, device), canvases(TINY, rows, device)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        best(model, model.hidden(canvas, canvas == model.mask_id))
    assert counter.get_total_flops() == work(TINY, rows, 48, 48, 32)[0]


def test_bytes_are_those_of_the_weights_and_of_what_is_kept():
    model = build(TINY, torch.device("cpu"))
    read_once = [p for name, p in model.backbone.named_parameters() if "norm" not in name and "embed" not in name]
    weights = 2 * sum(p.numel() for p in read_once)
    assert work(TINY, 2, 48, 48, 32)[1] == weights
    assert work(TINY, 2, 16, 48, 16)[1] == weights + sum(x[:, :, :32].nbytes for kept in
                                                         model.new_memory(2, 48, torch.device("cpu")) for x in kept)  # fmt: skip


def test_the_command_writes_every_part(tmp_path, capsys):
    flags = [word for name, value in vars(TINY).items() for word in (f"--{name}", str(value))]
    main([*flags, "--device", "cpu", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "large.json").read_text())
    assert {record["rows"] for record in written["evaluations"]} == {1, 8, 32}
    assert all(record["evaluations"] == 4 for record in written["decodings"]) and len(written["decodings"]) == 9
    assert [record["block"] for record in written["rollouts"]] == [32, 16]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]).keys() == {"tflops", "tbps"}
