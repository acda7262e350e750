"""Versions of a model in the MLflow registry: put there as plain files, found by alias or number, fetched and verified.

Which of them is champion is decided in ``champion``; the files themselves are those of ``geokr_core.backbone.build``.
"""

import importlib.metadata
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.tracking import MlflowClient
from mlflow.types.schema import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import geokr_core.backbone.loader
from geokr_core.backbone.bundle import BUNDLE_FILES, DESCRIPTION, Bundle, verify_bundle
from geokr_core.backbone.card import Score, model_card, registry_page
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.errors import BackboneError, RegistryError
from geokr_core.registry.standing import has_files
from geokr_core.step.files import whole_folder
from geokr_core.tracking.server import Connection, connect, refusals, sqlite_file, tracking_uri, without_password
from geokr_core.tracking.tracked_run import DATA_VERSION_TAG, git_sha

_PYFUNC_CODE: Final = Path(geokr_core.backbone.loader.__file__).parent / "backbone_pyfunc.py"
_REQUIREMENTS: Final = ("mlflow", "torch", "safetensors", "numpy")
CARD: Final = "README.md"
"""The model card with scores, as hubs look for it. It lies beside the bundle's files and is none of them."""
EVALUATION_RUN_TAG: Final = "geokr/evaluation_run"
"""The run that holds results, report and scores: an artifact folder ``evidence``."""
_ABOUT_MODELS: Final = (
    "Backbones pretrained by GeoKR on satellite scenes and the land cover below them. The alias `champion` is the one to use; "
    "`challenger` is the one that was registered last. Each version's page says what it scores and how to use it."
)
_ABOVE_CARD: Final = "\n\n<!-- model card -->\n\n"
_MAX_DESCRIPTION_CHARS: Final = 4900
"""MLflow's database keeps 5000."""
_NAMED: Final = 50
"""Models that a message names at most."""


def register_once(connection: Connection, bundle: Bundle, run_id: str, scores: Sequence[Score] = ()) -> ModelVersion:
    """The version of this very bundle, registered now if it is not there yet; its latest evaluation counts.

    Args:
        connection: to the server.
        bundle: what is registered.
        run_id: of the promotion, which holds the evidence.
        scores: of its evaluation, for its card and its page.
    """
    client, name, version = connection.client, bundle.model_name, bundle.bundle_data_version
    description = geokr_backbone.describe(bundle.folder)
    card, page = model_card(description, scores), registry_page(description, scores)
    known = _whole(connection, name, version)
    if known is not None:
        client.set_model_version_tag(name, str(known.version), EVALUATION_RUN_TAG, run_id)
        client.update_model_version(name, str(known.version), description=_with_card(known.description or "", page))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CARD).write_text(card, encoding="utf-8")
            client.log_model_artifact(str(known.source).removeprefix("models:/"), str(Path(folder) / CARD))
        return known
    _require_model(client, name)
    # Each tag is a row of the version's page: the rest of what is known are parameters of its logged model.
    tags = {
        DATA_VERSION_TAG: version,
        "geokr/levir_kr_data_version": bundle.data_version,
        EVALUATION_RUN_TAG: run_id,
    }
    logged = client.create_logged_model(
        connection.experiment_id,
        name=re.sub(r"[^\w-]", "-", name),
        source_run_id=run_id,
        tags=tags,
        params={
            "architecture": bundle.architecture,
            "bands": ",".join(bundle.bands),
            "feature_dim": str(bundle.feature_dim),
            "gsd_m": f"{bundle.gsd_m_min:g} to {bundle.gsd_m_max:g}",
            "legend_hash": bundle.legend_hash,
            "git_sha": git_sha(),
        },
        model_type="backbone",
    )
    with tempfile.TemporaryDirectory() as folder:
        model = Model(
            artifact_path=logged.artifact_location,
            run_id=run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
        )
        package = _package(bundle, model, Path(folder) / "model")
        (package / CARD).write_text(card, encoding="utf-8")
        client.log_model_artifacts(logged.model_id, str(package))
    client.finalize_logged_model(logged.model_id, "READY")
    return client.create_model_version(
        name,
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        tags=tags,
        description=page[:_MAX_DESCRIPTION_CHARS],
        model_id=logged.model_id,
    )


def _require_model(client: MlflowClient, name: str) -> None:
    """Have the registry know the model, whoever registers it first."""
    if registered(client, name) is not None:
        return
    try:
        client.create_registered_model(name, description=_ABOUT_MODELS)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine was quicker
            raise


def _package(bundle: Bundle, model: Model, folder: Path) -> Path:
    """Write an MLflow model of code and plain files, the bundle's files at its top.

    ``mlflow artifacts download`` then gives a usable bundle without this project. MLflow itself would put them into a
    folder ``artifacts`` and write down where they came from on this machine.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it asks for an input example and for its own kind of type hints
        save_model(
            path=str(folder),
            python_model=str(_PYFUNC_CODE),
            artifacts={name: str(bundle.folder / name) for name in BUNDLE_FILES},
            signature=ModelSignature(
                outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, bundle.feature_dim))]),
                params=ParamSchema(
                    [
                        ParamSpec("bits", DataType.long, 8),
                        ParamSpec("low", DataType.double, [], (-1,)),
                        ParamSpec("high", DataType.double, [], (-1,)),
                    ]
                ),
            ),
            metadata={
                "input": f"whole numbers of 8 or 16 bits, (B, C, H, W) or (B, H, W, C): {', '.join(bundle.bands)}"
            },
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name).split('+')[0]}"
                for name in (*_REQUIREMENTS, *bundle.libraries[:1])
            ],
            mlflow_model=model,
        )
    flavour = model.flavors["python_function"]
    for name, entry in flavour["artifacts"].items():
        (folder / entry["path"]).rename(folder / name)
        entry.update(path=name, uri=name)
    flavour["model_code_path"] = _PYFUNC_CODE.name
    del flavour["cloudpickle_version"]  # nothing here is pickled
    (folder / "artifacts").rmdir()
    model.save(str(folder / "MLmodel"))
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    return folder


def _whole(connection: Connection, name: str, data_version: str) -> ModelVersion | None:
    """The newest version of this very bundle whose files are still there."""
    client = connection.client
    same = f"name = '{name}' AND tags.`{DATA_VERSION_TAG}` = '{data_version}'"
    newest_first = sorted(all_versions(client, same), key=lambda found: -int(found.version))
    return next((found for found in newest_first if has_files(client, connection.uri, name, int(found.version))), None)


def all_versions(client: MlflowClient, which: str) -> Iterator[ModelVersion]:
    """All versions that a filter names, page by page: a registry may hold more than MLflow lists at once."""
    page = client.search_model_versions(which)
    yield from page
    while page.token:
        page = client.search_model_versions(which, page_token=page.token)
        yield from page


def version_numbers(client: MlflowClient, name: str) -> list[int]:
    """Numbers of all versions of a model, ascending."""
    return sorted(int(found.version) for found in all_versions(client, f"name = '{name}'"))


def registered(client: MlflowClient, name: str) -> RegisteredModel | None:
    """A model by its name, or None where the registry has none: asked by name, however many models there are."""
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def aliases_of(client: MlflowClient, name: str) -> dict[str, int]:
    """Which version each alias of a model points to."""
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def _some_names(client: MlflowClient) -> str:
    """Names of models for a message: all of a small registry, some of a large one."""
    page = client.search_registered_models(max_results=_NAMED, order_by=["name ASC"])
    return (", ".join(model.name for model in page) or "none") + (", …" if page.token else "")


def describe(client: MlflowClient, name: str, version: int, what_happened: str) -> None:
    """Put what became of a version above its model card on the registry's page."""
    written = client.get_model_version(name, str(version)).description or ""
    card = written.rpartition(_ABOVE_CARD)[2]
    client.update_model_version(name, str(version), description=_with_card(f"{what_happened}{_ABOVE_CARD}", card))


def _with_card(written: str, card: str) -> str:
    """A description whose card is replaced; what became of the version stays above it."""
    above, marker, _ = written.rpartition(_ABOVE_CARD)
    return f"{above}{marker}{card}"[:_MAX_DESCRIPTION_CHARS]


def drop_tags(client: MlflowClient, name: str, version: int, *keys: str) -> None:
    """Take tags from a version; those that it does not have are skipped."""
    there = client.get_model_version(name, str(version)).tags
    for key in keys:
        if key in there:
            client.delete_model_version_tag(name, str(version), key)


def download(reference: str, to: Path) -> Path:
    """Download a backbone from the registry and check it: every sha256, and the golden features.

    Args:
        reference: ``name@alias`` or ``name/version``.
        to: folder that gets the files of the bundle; a bundle that lies there is replaced.

    Returns:
        ``to``.

    Raises:
        RegistryError: there is no such model, alias or version (the message lists what there is), MLflow cannot be
            reached, or ``to`` holds something else.
        BackboneError: what was downloaded is damaged; ``to`` is left as it was.
    """
    to = to.resolve()
    if to.exists() and not (to / DESCRIPTION).is_file() and (to.is_file() or any(to.iterdir())):
        raise RegistryError(f"{to}: something else lies there and would be replaced; name a new folder.")
    database = sqlite_file(tracking_uri())
    if database is not None and not database.is_file():
        raise RegistryError(
            f"{database}: no registry there. Set MLFLOW_TRACKING_URI to the server that has {reference!r}, "
            "or run from the folder of the project that registered it."
        )
    with refusals(f"Downloading {reference}"):
        connection = connect()
        name, version = resolve(connection.client, reference)
        with tempfile.TemporaryDirectory() as folder:
            bundle = fetch(connection, name, version, Path(folder))
            with whole_folder(to) as partial:
                for file in BUNDLE_FILES:
                    shutil.copyfile(bundle / file, partial / file)
                if (bundle.parent / CARD).is_file():  # versions of earlier releases have no card with scores
                    shutil.copyfile(bundle.parent / CARD, partial / CARD)
    return to


def fetch(connection: Connection, name: str, version: int, folder: Path) -> Path:
    """Download one version; verify it and give the folder of the bundle alone, without what MLflow adds.

    The card with scores, where the version has one, lies beside that folder.

    Raises:
        BackboneError: files are missing or damaged.
    """
    source = connection.client.get_model_version_download_uri(name, str(version))
    bundle = folder / "bundle"
    bundle.mkdir()
    place = Path(download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=connection.uri))
    for file in BUNDLE_FILES:
        if not (place / file).is_file():
            raise BackboneError(
                f"Version {version} of {name} lacks {file}: it was not registered by `geokr promote`, or its artifacts "
                f"were deleted. Choose another version, or register the backbone again."
            )
        (place / file).rename(bundle / file)
    verify_bundle(bundle)
    if (place / CARD).is_file():
        (place / CARD).replace(bundle.parent / CARD)
    return bundle


def resolve(client: MlflowClient, reference: str) -> tuple[str, int]:
    """Name and version that ``name@alias`` or ``name/version`` means.

    Raises:
        RegistryError: there is none; the message lists what there is.
    """
    match = re.fullmatch(r"(?:models:/)?([^@/:]+)(?:@([^@/:]+)|/(\d+))", reference)
    if match is None:
        raise RegistryError(f"{reference!r}: expected NAME@ALIAS or NAME/VERSION, e.g. geokr-resnet18@champion.")
    name, alias, version = match[1], match[2], match[3]
    model = registered(client, name)
    if model is None:
        place = without_password(tracking_uri())
        raise RegistryError(f"No model {name!r} in the registry at {place}; there: {_some_names(client)}.")
    if alias is not None:
        aliases = {key: int(value) for key, value in model.aliases.items()}
        if alias not in aliases:
            there = ", ".join(f"{key} (version {value})" for key, value in sorted(aliases.items()))
            raise RegistryError(f"{name} has no alias {alias!r}; there: {there or 'none'}.")
        return name, aliases[alias]
    numbers = version_numbers(client, name)
    if int(version) not in numbers:
        raise RegistryError(f"{name} has no version {version}; there: {', '.join(map(str, numbers)) or 'none'}.")
    return name, int(version)
