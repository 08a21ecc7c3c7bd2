# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own dataset
#
# Two files, `NAME_TRAIN.ts` and `NAME_TEST.ts`, in the format of the UCR/UEA archive; aeon writes them.

# %%
import os
import sys
import tempfile
from pathlib import Path

os.chdir(tempfile.mkdtemp(prefix="tsexp-own-data-"))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# %% [markdown]
# ## The files
#
# Two kinds of machine, told apart by how fast they hum; two sensors each. An array (series, channels, time),
# or a list of arrays (channels, time) of unequal lengths.

# %%
import numpy as np

rng = np.random.default_rng(0)
kind = np.array(["slow", "fast"])[np.arange(120) % 2]
period = np.where(kind == "slow", 12, 9)[:, None, None]
phase = rng.uniform(0, 2 * np.pi, (120, 2, 1))
series = np.sin(2 * np.pi * np.arange(128) / period + phase) + 0.5 * rng.normal(size=(120, 2, 128))
series.shape

# %%
from aeon.datasets import save_to_ts_file

for part, chosen in (("TRAIN", slice(0, 60)), ("TEST", slice(60, 120))):
    save_to_ts_file(
        series[chosen],
        kind[chosen],
        label_type="classification",
        path="hum",
        problem_name="Hum",
        file_suffix=f"_{part}",
    )
sorted(Path("hum").iterdir())

# %%
print(Path("hum/Hum_TRAIN.ts").read_text()[:300])

# %% [markdown]
# ## The run

# %% language="bash"
# python -m tsexp data=ucr data.name=Hum data.path=hum data.scale=standard model.patch=8 \
#     prune.ratio=0.3 measure.repeats=20 train.progress=false

# %% [markdown]
# `data.scale` says how raw values reach the model (`none`, `znorm`, `minmax`, `standard`), `data.unequal`
# what happens to unequal lengths, `data.missing` what to missing values: `conf/data/ucr.yaml` explains them.
# All of it is inside the deployed artifact, and measured with it. A dataset that you use often becomes a
# file: [docs/extending.md](../docs/extending.md).
#
# ## What errors look like
#
# One line that says what is wrong, what is allowed and what to do, before any work.

# %% magic_args="--no-raise-error" language="bash"
# python -m tsexp data=ucr data.name=Hum data.path=humm

# %% magic_args="--no-raise-error" language="bash"
# python -m tsexp data=ucr data.name=Humm data.path=hum

# %% magic_args="--no-raise-error" language="bash"
# python -m tsexp data=ucr data.name=Hum data.path=hum data.scale=z-norm data.val_fraction=1.5

# %% [markdown]
# A file in which something is wrong:

# %%
broken = Path("broken")
broken.mkdir()
for file in Path("hum").iterdir():
    (broken / file.name).write_text(
        file.read_text().replace(":slow\n", "\n") if "TEST" in file.name else file.read_text()
    )

# %% magic_args="--no-raise-error" language="bash"
# python -m tsexp data=ucr data.name=Hum data.path=broken
