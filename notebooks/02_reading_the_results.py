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
# # Reading the results
#
# Every number lies in an MLflow store, with what it was computed from. This notebook makes a store with one
# short run, reads it, and recomputes two numbers from their raw data.

# %%
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.chdir(tempfile.mkdtemp(prefix="tsexp-reading-"))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
warnings.filterwarnings("ignore", "IProgress")

# %% language="bash"
# python -m tsexp data=italy_power_demand prune.ratio=0.5 measure.repeats=20 train.progress=false

# %% [markdown]
# ## Through MLflow
#
# One run per job. Units are in the names, `vs_dense/…` is against the dense fp32 model, trained as long and
# measured in the same processes, `_lo` and `_hi` are the ends of its 95 % interval.

# %%
import mlflow

mlflow.set_tracking_uri(f"sqlite:///{Path.cwd()}/mlflow.db")
client = mlflow.MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
{
    name: round(value, 4)
    for name, value in sorted(run.data.metrics.items())
    if name.startswith(("test/", "vs_dense/"))
}

# %% [markdown]
# Where the energy comes from, whether the record may stand in a table, and what to look at twice:

# %%
{
    name: run.data.tags[name]
    for name in ("tsexp.energy_source", "tsexp.valid", "tsexp.invalid_reasons", "tsexp.warnings")
}

# %% [markdown]
# What else is kept with the run:

# %%
[file.path for file in client.list_artifacts(run.info.run_id)]

# %%
from IPython.display import Image

Image(client.download_artifacts(run.info.run_id, "confusion.png"))

# %% [markdown]
# ## A number again, from its windows
#
# `windows.json` has every window as it was read. `summarize` makes the statistics of it, the same ones at any
# time.

# %%
import json

from tsexp.energy.statistics import summarize

raw = json.loads(Path(client.download_artifacts(run.info.run_id, "windows.json")).read_text())
again = summarize(raw)
assert all(abs(again[name] - run.data.metrics[name]) < 1e-9 for name in again)
again["vs_dense/energy_saving_pct"], run.data.metrics["vs_dense/energy_saving_pct"]

# %% [markdown]
# ## The frozen results
#
# A report is made of files and not of the store: `python -m tsexp.report freeze`, or from Python. A row per
# run, every column with its unit.

# %%
from tsexp.report import freezing, frozen

freezing.freeze(client, "tsexp", Path("frozen"))
results = frozen.load(Path("frozen"))
results.results.T

# %% [markdown]
# Measured and estimated energy are different columns, and only one of them has a value:

# %%
results.results[["energy_source", "measured_saving_pct", "estimated_saving_pct"]]

# %% [markdown]
# The saving by hand: joules per series of each pair of windows; of each process the median of what its pairs
# save, on the logarithm; of these the mean.

# %%
import numpy as np

windows = results.windows.query("subject != 'idle' and not discarded")
joules = windows.assign(j=windows.energy_j / windows.inferences).pivot(
    index=["process", "pair"], columns="subject", values="j"
)
per_process = np.log(joules.reference / joules.artifact).groupby("process").median()
saving_pct = 100 * (1 - np.exp(-per_process.mean()))
assert abs(saving_pct - again["vs_dense/energy_saving_pct"]) < 1e-9
saving_pct

# %% [markdown]
# The windows over time. A drift, an outlier or a neighbour on the machine would show here, and in both lines
# alike.

# %%
axis = (1000 * joules.droplevel("process")).plot(
    marker="o",
    figsize=(7, 3),
    xlabel="pair",
    ylabel="mJ per series",
    title=run.data.tags["tsexp.energy_source"],
)
top = axis.set_ylim(bottom=0)

# %% [markdown]
# ## A number again, from its predictions
#
# A line per test series: its label, what the artifact says, and what the reference says (the dense model,
# trained as long). So the drop in accuracy is a paired one.

# %%
predictions = results.predictions
right, dense_right = (predictions[column] == predictions.label for column in ("predicted", "dense_predicted"))
assert abs(right.mean() - run.data.metrics["test/accuracy"]) < 1e-9
{"accuracy": right.mean(), "drop, points": 100 * (dense_right.mean() - right.mean())}

# %% [markdown]
# Series that only one of the two gets right decide whether that drop is more than chance (McNemar's exact
# test):

# %%
from scipy.stats import binomtest

lost, gained = int((dense_right & ~right).sum()), int((right & ~dense_right).sum())
{"lost": lost, "gained": gained, "p": binomtest(lost, lost + gained).pvalue if lost + gained else 1.0}

# %% [markdown]
# How all of this is measured, and what it cannot tell: [docs/measuring.md](../docs/measuring.md).
# Go on with [03_bring_your_own_dataset](03_bring_your_own_dataset.py).
