"""Makes this folder by version 0.1.0 (commit 7107774): a run that is stopped after 6 of 10 steps.

    cd CHECKOUT && PYTHONPATH=. OMP_NUM_THREADS=1 python make.py

`undisturbed.jsonl` is the log of the same run in one piece. No test runs this file.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path

import torch

from albef.engine.train import Interrupted, prepare_folder, train
from albef.tasks.pretrain import Pretrain
from tests.worlds import tiny_recipe


class Stopped(Pretrain):
    def losses(self, objective, batch, step, progress):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(objective, batch, step, progress)


torch.set_num_threads(1)
recipe = tiny_recipe(Path("world:train/32"), evaluate_steps=4)
sizes = {"vision_width": 8, "text_width": 8, "text_intermediate": 16, "embed_dim": 8}
model = replace(recipe.model, vocab_size=60, max_positions=16, vision_layers=1, fusion_layers=1, **sizes)
recipe = replace(recipe, model=model, data=replace(recipe.data, validation=("world:validation/5",)))
for folder, kind in (Path("whole"), Pretrain), (Path("run-0.1.0"), Stopped):
    prepare_folder(recipe, folder)
    try:
        train(kind(recipe, folder), recipe, folder, torch.device("cpu"))
    except Interrupted:
        (folder / "model" / "model.safetensors").unlink()  # going on reads the checkpoint's weights
