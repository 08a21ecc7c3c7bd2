"""The artifact as an MLflow model: how it is named, described and logged.

It is a logged model of its own, named by what it is, for the UI and the registry, and its files are among the
run's artifacts as well: ``runs:/RUN_ID/model`` loads it, whatever its name.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import requires
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexp.config import Config, flat, own_code
from tsexp.runtimes import distribution
from tsexp.system import alive
from tsexp.tracking import lengths

if TYPE_CHECKING:
    from tsexp.data import Dataset
    from tsexp.runtimes import Artifact

REQUIREMENTS = requires("tsexp") or []
FOLDER = "model"
"""Among the artifacts of the run."""
RUN_ID = "RUN_ID"
"""In what is said of a model before there is a run that holds it."""
NUMBERS = {"none": "fp32", "dynamic": "int8dynamic", "static": "int8static", "qat": "int8qat", "bf16": "bf16"}
KNOWN_STEPS = ("dense", "prune", "finetune", "qat")
"""Parts of the way to an artifact that the other words of its name tell of."""


def name_of(cfg: Config, runtime: str, steps: Iterable[str] = ()) -> str:
    """Return the name of a model: dataset, model, compression, number format, runtime.

    MLflow allows no dots, slashes, colons, quotes and per cent signs in it.

    Parameters
    ----------
    cfg
        What was asked for.
    runtime
        That executes it.
    steps
        Of compression; those that this module does not know are named as they are.
    """
    p, q = cfg.prune, cfg.quant
    words = [cfg.data.name, cfg.model.name]
    words += [p.method, p.scope, f"{100 * p.ratio:g}pct"] if p.ratio else []
    words += [step for step in steps if step not in KNOWN_STEPS]
    words += [NUMBERS.get(q.mode, f"int{q.weight_bits}weights"), runtime]
    return re.sub(r"[^\w-]+", "_", "-".join(word.strip(":") for word in words))[: lengths.NAME]


def save(folder: Path, name: str, cfg: Config, dataset: Dataset, artifact: Artifact) -> dict[str, Any]:
    """Save an artifact as an MLflow model in a new folder, and return what `log` has to know of it.

    Parameters
    ----------
    folder
        Is made.
    name
        Of the model.
    cfg, dataset, artifact
        Of the run.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    own = own_code(*(v for v in flat(cfg.model).values() if isinstance(v, str)), cfg.runtime.name)
    code = {_top_level(name, file) for name, file in own.items()}
    answers: list[Any] = [ColSpec("string", "class")]
    answers += [ColSpec("double", f"p_{name}") for name in artifact.manifest["classes"]]
    # No schema of the input: MLflow would refuse float64 and lists; `served` checks, and says what it takes.
    signature = ModelSignature(None, Schema(answers), ParamSchema([ParamSpec("scores", "boolean", False)]))
    with alive.scratch("model") as scratch, warnings.catch_warnings():
        # An example would be predicted, and written, once more for every job.
        warnings.filterwarnings("ignore", message=".*(type hint|input example)", category=UserWarning)
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"artifact": str(artifact.folder)},
            model_config={"ragged": dataset.preprocessing.ragged, "code": [*own, _module_name(artifact)]},
            metadata={"input": _takes(dataset, artifact)},
            signature=signature,
            code_paths=[str(_pack(scratch)), *map(str, code)],
            pip_requirements=requirements(artifact.manifest["versions"]),
        )
    return {
        "name": name,
        "note": _describe(dataset, artifact),
        "params": lengths.params(flat(cfg)),
        "type": "classifier",
    }


def log(client: Any, run: Any, folder: Path, about: Mapping[str, Any]) -> str:
    """Log a saved model, and return its id.

    Parameters
    ----------
    client
        An `mlflow.MlflowClient`.
    run
        The `mlflow.entities.Run` that it comes from.
    folder
        It; which run and store it belongs to is written into it.
    about
        What `save` returned.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run_id = run.info.run_id
    model = client.create_logged_model(
        run.info.experiment_id,
        about["name"],
        run_id,
        tags={"mlflow.note.content": about["note"].replace(RUN_ID, run_id)},
        params=about["params"],
        model_type=about["type"],
    )
    saved = Model.load(str(folder))
    saved.run_id = run_id
    saved.model_id = saved.model_uuid = model.model_id
    saved.artifact_path = model.artifact_location
    saved.save(str(folder / "MLmodel"))
    client.log_model_artifacts(model.model_id, str(folder))
    _also_in_the_run(client, run, model, folder)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _also_in_the_run(client: Any, run: Any, model: Any, folder: Path) -> None:
    """Put the same files where ``runs:/RUN_ID/model`` finds them: hard links, where the store is a folder."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    if is_local_uri(run.info.artifact_uri):
        source, target = map(local_file_uri_to_path, (model.artifact_location, run.info.artifact_uri))
        try:
            shutil.copytree(source, Path(target) / FOLDER, copy_function=os.link)
            return
        except (OSError, shutil.Error):  # a file system without them
            shutil.rmtree(Path(target) / FOLDER, ignore_errors=True)
    client.log_artifacts(run.info.run_id, str(folder), FOLDER)


def _pack(folder: Path) -> Path:
    """Write this package into one archive, which Python imports as it is.

    Of each result a server takes every file by a request, twice: 140 modules took a slow one minutes.
    """
    from tsexp.tracking import served

    package = Path(__file__).parents[1]
    archive = folder / served.CODE
    with zipfile.ZipFile(archive, "w") as file:
        for module in sorted(package.rglob("*.py")):
            # Not its own date: an installation may have one that an archive cannot.
            name = zipfile.ZipInfo(str(module.relative_to(package.parent)))
            name.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(name, module.read_bytes())
    return archive


def _module_name(artifact: Artifact) -> str:
    return f"{artifact.manifest['runtime'].rstrip(':')}:"


def _takes(dataset: Dataset, artifact: Artifact) -> str:
    from tsexp.tracking import served

    channels, length = artifact.manifest["shape"]
    return served.takes(channels, length, dataset.preprocessing.ragged)


def _describe(dataset: Dataset, artifact: Artifact) -> str:
    return f"""`mlflow.pyfunc.load_model("runs:/{RUN_ID}/{FOLDER}").predict(series)`

Takes {_takes(dataset, artifact)}. Answers a table: `class`, and the probability of each class, `p_…`;
with `params={{"scores": True}}` the raw scores as an array (batch, classes)."""


def _top_level(name: str, file: Path) -> Path:
    """What has to lie in the path for ``package.module:object`` to be imported.

    The package's folder, or the module's file.
    """
    dots = name.split(":")[0].count(".")
    return file.parents[dots] if file.name == "__init__.py" else file.parents[dots - 1] if dots else file


def requirements(libraries: Mapping[str, str]) -> list[str]:
    """What a logged model needs beside its code.

    The package's own requirements, and the libraries that made and run the artifact.
    """
    return [line for line in REQUIREMENTS if "extra ==" not in line] + [
        f"{distribution(name) or name}=={version}" for name, version in libraries.items() if name != "torch"
    ]
