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
# # For users of aeon
#
# A transformer, pruned and deployed, as a classifier of aeon: fitted on arrays, compared with others,
# exported.
#
# So that this takes a minute or two, the dataset is small, training short and the measurement too: leave
# `epochs` and `overrides` away for results.

# %%
import os
import tempfile
from pathlib import Path

os.chdir(tempfile.mkdtemp(prefix="tsexp-aeon-"))

# %%
from aeon.datasets import load_italy_power_demand

X, y = load_italy_power_demand(split="train")
X_test, y_test = load_italy_power_demand(split="test")
X.shape, X_test.shape

# %% [markdown]
# ## Fit and predict
#
# Half of the attention heads and FFN units go, and the rest is tuned. Parameters have the names and defaults
# of the configuration; `overrides` reaches everything else.

# %%
from tsexp import CompressedTransformerClassifier

quick = {"epochs": 20, "finetune_epochs": 5, "random_state": 0}
quick["overrides"] = ("measure.repeats=12", "measure.processes=4")
classifier = CompressedTransformerClassifier(prune_ratio=0.5, **quick).fit(X, y)
classifier.score(X_test, y_test)

# %%
classifier.predict_proba(X_test[:3]).round(3)

# %% [markdown]
# ## What it is, and what it took
#
# Seconds and joules by the names of the store. `estimated:` in `energy_source` marks joules that come from
# CPU time, where no counter answers.

# %%
classifier.report()

# %% [markdown]
# ## Which model?
#
# As with any classifier of aeon; some are no transformers and cannot be pruned.

# %%
from sklearn.model_selection import GridSearchCV

grid = [{"model": ["t3"], "prune_ratio": [0, 0.5]}, {"model": ["minirocket", "quant_forest"]}]
search = GridSearchCV(CompressedTransformerClassifier(**quick), grid, cv=3).fit(X, y)
list(zip(search.cv_results_["params"], search.cv_results_["mean_test_score"].round(3), strict=True))

# %% [markdown]
# ## Measured
#
# With test series, `report` measures accuracy, latency and energy of the artifact against the control: the
# dense model with the same training in total.

# %%
measured = classifier.report(X_test, y_test)
names = ["test/accuracy", "test/control_accuracy", "latency/p50_ms", "vs_dense/energy_saving_pct"]
{name: round(measured[name], 3) for name in names} | {"energy": measured["energy_source"]}

# %%
measured["warnings"]

# %%
import matplotlib.pyplot as plt

energies = [measured["energy/reference_per_inference_j"], measured["energy/per_inference_j"]]
plt.figure(figsize=(4, 2.5))
plt.barh(["control", "pruned by half"], [1e3 * energy for energy in energies])
plt.xlabel(f"mJ per inference ({measured['energy_source']})")
# %% [markdown]
# ## Ship it
#
# The artifact is a folder; `manifest.json` says what it executes. Pickles and copies of the classifier carry
# it, too.

# %%
folder = classifier.export("artifact")
sorted(file.name for file in Path(folder).iterdir())

# %%
from tsexp import runtimes

runtimes.load(folder)(X_test[:3].astype("float32"))  # raw scores

# %% [markdown]
# All parameters, and what is not supported: [docs/aeon.md](../docs/aeon.md).
