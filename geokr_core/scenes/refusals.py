"""How scenes that a step refuses are told: each as a warning, or all in the error where not one is left, and never both."""

from dataclasses import dataclass, field

from geokr_core.step.reporter import Reporter

_NAMED = 10
"""Scenes that an error names."""


@dataclass
class Refusals:
    """The scenes that a step refused so far. They are held back until one scene is usable.

    Attributes:
        reporter: hears a warning a scene.
        how: what became of such a scene, as a warning says it.
        listed_by: how an error that names the first ones ends.
        reasons: why, by scene id, in the order of refusal.
    """

    reporter: Reporter
    how: str = "quarantined"
    listed_by: str = "; `geokr quarantine` lists all"
    reasons: dict[str, str] = field(default_factory=dict)
    _one_is_usable: bool = False

    def refused(self, scene_id: str, reason: str) -> None:
        """Take note of a scene that cannot be used."""
        self.reasons[scene_id] = reason
        if self._one_is_usable:
            self._warn(scene_id)

    def usable(self) -> None:
        """Take note of a scene that can be used: what was refused before is told now."""
        if not self._one_is_usable:
            self._one_is_usable = True
            for scene_id in self.reasons:
                self._warn(scene_id)

    def named(self) -> str:
        """The reasons as an error shows them, a line a scene: the first ones, and how many there are beyond."""
        lines = [f"  {scene_id}: {reason}" for scene_id, reason in self.reasons.items()]
        more = f"  … and {len(lines) - _NAMED} more" + self.listed_by
        return "\n".join([*lines[:_NAMED], *([more] if len(lines) > _NAMED else [])])

    def _warn(self, scene_id: str) -> None:
        self.reporter.warning(f"scene {scene_id} {self.how}: {self.reasons[scene_id]}")
