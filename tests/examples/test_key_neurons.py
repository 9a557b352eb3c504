"""The key-neuron experiment runs on the digits and on images packed like CIFAR-10."""

import io

import key_neurons
import numpy
import pytest
import torch
from PIL import Image


def rows(output):
    return [line.split() for line in output.splitlines()[1:]]


def test_short_run_on_digits(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["key_neurons.py", "--short"])
    key_neurons.main()
    *measured, mean = rows(capsys.readouterr().out)
    assert len(measured) == 2
    assert mean[0] == "mean"
    for row in (*measured, mean):
        assert all(-1 <= float(value) <= 1.0001 for value in row[-4:])


def test_packed_images(tmp_path):
    pixels = numpy.random.randint(0, 256, (3, 32, 32, 3), dtype=numpy.uint8)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=100, subsampling=0)
        files.append(buffer.getvalue())
    numpy.savez(
        tmp_path / "train.npz",
        jpeg=numpy.frombuffer(b"".join(files), dtype=numpy.uint8),
        offset=numpy.cumsum([0, *map(len, files)]),
        label=numpy.array([3, 1, 2], dtype=numpy.uint8),
    )
    images, labels = key_neurons.load(tmp_path, limit=2).tensors
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [3, 1]
    original = torch.from_numpy(pixels[:2]).permute(0, 3, 1, 2).float().flatten()
    assert torch.corrcoef(torch.stack([images.flatten(), original]))[0, 1] > 0.95
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        key_neurons.load(tmp_path / "elsewhere", limit=0)
