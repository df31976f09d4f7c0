"""How long a run is and how far it has come, in optimizer steps."""

import math

import lightning as L


def run_length(trainer: L.Trainer) -> tuple[float, float]:
    """Optimizer steps of the whole run and of one epoch; infinite or -1 where it is not known.

    To be called once the training starts: it sets the training data up, and Lightning resumes
    their position only if they are set up after the checkpoint has been read.
    """
    run = trainer.estimated_stepping_batches
    epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    return run, math.ceil(epoch) if math.isfinite(epoch) else epoch


def steps_done(trainer: L.Trainer, pl_module: L.LightningModule) -> int:
    """Optimizer steps so far; with manual optimization, where there may be several to a batch or
    none, the batches so far.
    """
    if pl_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx + 1
