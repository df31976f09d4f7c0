"""Two processes compress alike: equal weights after every step, equal manifests at the end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .techniques import TECHNIQUES

SCRIPT = """
import json, sys
from pathlib import Path
from lightning_compress.models import manifest_of
from tests.callbacks.conftest import SameEverywhere, two_processes
from tests.conftest import ToyData
from tests.invariants.techniques import EPOCHS, TECHNIQUES

if __name__ == "__main__":
    edits = {}
    for number, (name, technique) in enumerate(TECHNIQUES.items()):
        module = technique.build(Path(sys.argv[2]))
        callbacks = [*technique.callbacks(), SameEverywhere()]
        folder = Path(sys.argv[1]) / str(number)
        trainer = two_processes(folder, max_epochs=EPOCHS, callbacks=callbacks)
        trainer.fit(module, ToyData())
        edits[name] = manifest_of(module.model)
    path = Path(sys.argv[1]) / f"rank{trainer.global_rank}.json"
    path.write_text(json.dumps(edits))
"""


@pytest.mark.slow
def test_two_processes_compress_alike(
    trained: Path, run_script: Callable[..., str], tmp_path: Path
) -> None:
    run_script(SCRIPT, trained)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first.keys() == TECHNIQUES.keys()
    assert all(first.values()), "a technique compressed nothing"
