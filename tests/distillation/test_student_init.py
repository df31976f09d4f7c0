import copy

import pytest
import torch

from lightning_compress.distillation.student_init import keep_every_nth_layer_
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, remove_heads_, structure_of
from lightning_compress.models.layers import skipped
from lightning_compress.saving import load_compressed, save_compressed

from ..families import STACKED

# ALBERT's layers are one block.
KEPT = [
    (2, 2, [0]),
    (3, 2, [0, 2]),
    (4, 2, [0, 3]),
    (4, 3, [0, 3]),
    (4, 4, [0]),
    (5, 2, [0, 2, 4]),
    (5, 3, [0, 4]),
    (6, 2, [0, 2, 5]),
    (12, 2, [0, 2, 4, 7, 9, 11]),
    (12, 3, [0, 4, 7, 11]),
    (12, 4, [0, 6, 11]),
    (12, 6, [0, 11]),
    (12, 12, [0]),
]


@pytest.fixture
def deep(with_random_weights):
    def build(family, layers, **changes):
        return with_random_weights(family, num_hidden_layers=layers, **changes)

    return build


def weights(model, block=None):
    name = "" if block is None else f"{block}."
    return {n.removeprefix(name): w for n, w in model.state_dict().items() if n.startswith(name)}


def logits(model, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model(**inputs).logits


def alike(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("count", "n", "kept"), KEPT)
def test_layers_stay_evenly_spread_with_the_weights_of_the_teacher(deep, count, n, kept):
    assert len(kept) == -(-count // n)
    teacher = deep("bert", count)
    student = copy.deepcopy(teacher)
    keep_every_nth_layer_(student, n)
    before, after = structure_of(teacher).blocks, structure_of(student).blocks
    assert len(after) == student.config.num_hidden_layers == len(kept)
    for own, its in zip(after, kept, strict=True):
        assert alike(weights(student, own), weights(teacher, before[its]))
    own, its = weights(student), weights(teacher)
    outside = [name for name in its if not any(name.startswith(f"{b}.") for b in before)]
    assert alike({name: own[name] for name in outside}, {name: its[name] for name in outside})


@pytest.mark.parametrize("family", STACKED)
def test_it_is_the_teacher_without_the_other_layers(deep, texts, family):
    teacher = deep(family, 5)
    before = logits(teacher, texts())
    student = copy.deepcopy(teacher)
    keep_every_nth_layer_(student, 2)
    with skipped(teacher, [1, 3]):
        expected = logits(teacher, texts())
    assert torch.allclose(logits(student, texts()), expected, rtol=0, atol=1e-10)
    assert not torch.allclose(expected, before, rtol=0, atol=1e-3)
    assert torch.equal(logits(teacher, texts()), before)


def test_it_is_a_dense_model_of_its_own(deep, texts, tmp_path):
    student = deep("bert", 4)
    keep_every_nth_layer_(student, 2)
    assert manifest_of(student) == []
    student.float()
    student.save_pretrained(tmp_path / "plain")
    again = type(student).from_pretrained(tmp_path / "plain").eval()
    assert torch.equal(logits(again, texts()), logits(student, texts()))
    save_compressed(student, tmp_path / "compressed")
    again = load_compressed(tmp_path / "compressed").eval()
    assert torch.equal(logits(again, texts()), logits(student, texts()))
    assert manifest_of(again) == []


def test_what_was_done_to_the_teacher_stays_in_the_manifest(deep):
    student = deep("bert", 4)
    remove_heads_(student, {0: [1]})
    before = manifest_of(student)
    assert len(before) == 1
    keep_every_nth_layer_(student, 2)
    assert manifest_of(student) == before


@pytest.mark.parametrize("n", [-1, 0, 1, 5])
def test_numbers_that_make_no_student_are_refused(deep, n):
    model = deep("bert", 4)
    before = copy.deepcopy(weights(model))
    message = rf"model\.every_nth_layer is {n}: the teacher has 4 layers, .* between 2 and 4"
    with pytest.raises(InputError, match=message):
        keep_every_nth_layer_(model, n)
    assert alike(weights(model), before)
    assert model.config.num_hidden_layers == 4


def test_layers_that_cannot_go_are_refused_with_the_reason(deep):
    albert = deep("albert", 6)
    with pytest.raises(InputError, match=r"every_nth_layer.*one block.*num_hidden_layers"):
        keep_every_nth_layer_(albert, 2)
    assert albert.config.num_hidden_layers == 6
    strange = deep("bert", 4)
    strange.config.model_type = "strange"
    with pytest.raises(InputError, match="no known family"):
        keep_every_nth_layer_(strange, 2)
    scaled = deep("gpt2", 4, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(InputError, match="scale_attn_by_inverse_layer_idx"):
        keep_every_nth_layer_(scaled, 2)
    assert len(structure_of(scaled).blocks) == 4
