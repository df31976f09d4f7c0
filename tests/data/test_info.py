"""Facts of a data module, of this package, of somebody else, or of none."""

from typing import Any

import lightning as L

from lightning_compress.data.info import DataInfo


def test_without_a_data_module_all_facts_are_unknown() -> None:
    assert DataInfo.of(None) == DataInfo.of_trainer(None) == DataInfo()
    assert DataInfo().vocabulary == {}


def test_a_data_module_that_declares_nothing_has_its_class_as_name() -> None:
    class Theirs(L.LightningDataModule):
        """Somebody's data module."""

    assert DataInfo.of(Theirs()) == DataInfo(task_name="Theirs")


def test_what_is_declared_is_read() -> None:
    class Theirs(L.LightningDataModule):
        """Somebody's data module with some attributes."""

        num_labels = 3
        max_length = 7

    assert DataInfo.of(Theirs()) == DataInfo(num_labels=3, max_length=7, task_name="Theirs")


def test_the_facts_of_a_data_module_of_this_package(classification: Any) -> None:
    data = classification()
    before = DataInfo.of(data)
    assert (before.tokenizer, before.pad_token_id, before.num_labels) == (None, None, None)
    data.setup("fit")
    after = DataInfo.of(data)
    assert (after.num_labels, after.label_names) == (data.num_labels, data.label_names)
    assert after.vocabulary["vocab_size"] == len(data.tokenizer)
    assert after.vocabulary["pad_token_id"] == after.pad_token_id == data.pad_token_id
