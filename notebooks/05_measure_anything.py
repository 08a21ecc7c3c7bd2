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
# # Measure anything
#
# The meter of this project on models that did not come from it: estimators of aeon, a torch module, an ONNX
# file. The same processes, windows and intervals: [docs/measure_anything.md](../docs/measure_anything.md).

# %%
import os
import sys
import tempfile
from pathlib import Path

os.chdir(tempfile.mkdtemp(prefix="tsexp-measure-"))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# %%
from aeon.classification.convolution_based import MiniRocketClassifier
from aeon.classification.interval_based import QUANTClassifier
from aeon.datasets import load_classification

X, y = load_classification("ItalyPowerDemand", split="train")
X_test, y_test = load_classification("ItalyPowerDemand", split="test")
rocket = MiniRocketClassifier(random_state=0).fit(X, y)
quant = QUANTClassifier(random_state=0).fit(X, y)

# %% [markdown]
# ## Two estimators beside each other
#
# In batches of 64, so that scoring takes seconds. A † marks an estimate from CPU time.

# %%
from tsexp import measure_energy

record = measure_energy(rocket, X_test, quant, y_test, batch_size=64, processes=8, repeats=24)
record

# %% [markdown]
# ## How much is noise?
#
# Without a reference, a model is measured against itself.

# %%
measure_energy(rocket, X_test, y=y_test, batch_size=64, processes=8, repeats=24)

# %% [markdown]
# ## Every window is kept

# %%
import matplotlib.pyplot as plt
import pandas as pd

windows = pd.DataFrame(record.raw["windows"]).query("pair >= 0")
windows["ms per series"] = 1e3 * windows["cpu_s"] / windows["inferences"]
windows.set_index(["process", "pair", "subject"])["ms per series"].unstack().plot(style="o", logy=True)
plt.ylabel("CPU time, ms per series")
# %% [markdown]
# ## Into the store

# %%
record.to_mlflow()

# %% [markdown]
# ## Files, from the command line

# %% language="bash"
# python -m tsexp measure --help
