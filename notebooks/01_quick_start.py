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
# # Quick start
#
# Train a small transformer, prune it, deploy it, measure it against its dense self, look at the result.
#
# So that this takes less than a minute, the dataset is small and the measurement short (`measure.repeats`):
# leave that away for results.
#
# All files go into a temporary folder, and `python` is the interpreter of this notebook.

# %%
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.chdir(tempfile.mkdtemp(prefix="tsexp-quick-start-"))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
warnings.filterwarnings("ignore", "IProgress")
Path.cwd()

# %% [markdown]
# ## What can this machine measure?
#
# Without an energy counter, as on most virtual machines, energy is an estimate from CPU time, and marked †
# everywhere.

# %% language="bash"
# python -m tsexp.doctor

# %% [markdown]
# ## A sweep
#
# `-m` and values with commas: one job per value. The dataset lies in aeon's wheel, so that no network is
# needed.

# %% language="bash"
# python -m tsexp -m data=italy_power_demand prune.ratio=0,0.5 measure.repeats=20 train.progress=false

# %% [markdown]
# The first line is the dense model measured against itself: what it shows is noise. ⚠ marks what to look at
# twice.
#
# The picture of the sweep:

# %%
from IPython.display import Image

(picture,) = Path("multirun").rglob("sweep.png")
Image(picture)

# %% [markdown]
# The same command again measures nothing twice: it finds both jobs in the store.

# %% language="bash"
# python -m tsexp -m data=italy_power_demand prune.ratio=0,0.5 measure.repeats=20 train.progress=false \
#     | grep "measured before"

# %% [markdown]
# ## The artifact
#
# What was measured is in the store as an MLflow model: raw series in, classes and their probabilities out,
# with the code that runs it.

# %%
import mlflow

mlflow.set_tracking_uri(f"sqlite:///{Path.cwd()}/mlflow.db")
run = mlflow.search_runs(
    experiment_names=["tsexp"], filter_string="attributes.run_name = 'prune.ratio=0.5'"
).iloc[0]
model = mlflow.pyfunc.load_model(f"runs:/{run.run_id}/model")

# %%
from aeon.datasets import load_italy_power_demand

series, labels = load_italy_power_demand(split="test")
model.predict(series[:5]).assign(label=labels[:5])

# %% [markdown]
# `mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///…/mlflow.db`, the last line of the sweep, opens
# the store in a browser. Go on with [02_reading_the_results](02_reading_the_results.py).
