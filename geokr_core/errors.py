"""Every refusal this library makes, one class a cause, under one base class.

A message says what was found, what was expected and what to do about it. A `SceneRefusedError` ends one scene
(it is quarantined and the run goes on); every other error ends the step.
"""


class GeoKRError(Exception):
    """Base of every error raised on purpose; the command line prints its message and exits with code 2."""


class ConfigError(GeoKRError, ValueError):
    """The parameter file or an option is wrong: a typo, a value out of range, a missing section."""


class MissingExtraError(GeoKRError, ImportError):
    """An optional part of the installation is needed and absent; the message names the extra of ``pip install``."""


class MissingInputError(GeoKRError, FileNotFoundError):
    """A file or folder that a step needs is absent or empty."""


class DamagedOutputError(GeoKRError, ValueError):
    """A file that an earlier step wrote is not what it was: cut off, overwritten, of another kind."""


class SceneRefusedError(GeoKRError, ValueError):
    """One scene cannot give correct chips. The scene is quarantined with this message."""


class LandCoverError(GeoKRError, ValueError):
    """A land-cover product cannot be used as configured: no overlap, an unreadable tile, two products that clash."""


class UnknownLegendCodeError(LandCoverError):
    """A land-cover raster holds a code that its legend does not list."""


class AcquisitionError(GeoKRError, RuntimeError):
    """A catalogue or an asset cannot be had as asked: no item, no answer, no raster, another checksum, too large."""


class DatasetError(GeoKRError, ValueError):
    """Levir-KR cannot be frozen or read: no chip survived, a shard is missing or changed."""


class TrainingError(GeoKRError, RuntimeError):
    """Pretraining cannot go on: a loss that is not finite, a checkpoint of another run."""


class BackboneError(GeoKRError, ValueError):
    """Weights and architecture, or bands and input, do not fit together."""


class EvaluationError(GeoKRError, RuntimeError):
    """A task cannot be evaluated. Never turned into a score."""


class EmbeddingsError(GeoKRError, ValueError):
    """Chips cannot be embedded, or vectors cannot be used together: bands that are missing, vectors of two models."""


class PredictionError(GeoKRError, ValueError):
    """Land-cover shares cannot be mapped: no held-out places, a head of another legend or network."""


class AuditError(GeoKRError, ValueError):
    """A land-cover map cannot be audited as asked: too few places, one class only, too few judged units."""


class RegistryError(GeoKRError, RuntimeError):
    """The model registry refused or lacks what was asked for."""


class BackupError(GeoKRError, RuntimeError):
    """A backup cannot be made, is damaged, or cannot be restored."""


class VersioningError(GeoKRError, RuntimeError):
    """DVC refused to record an output."""


class BusyError(GeoKRError, RuntimeError):
    """Another process makes what was asked for, and this one cannot wait for it."""
