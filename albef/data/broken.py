"""Images that cannot be read: how one is named, and when there are too many."""

from collections.abc import Sequence

from albef.errors import AlbefRuntimeError, AlbefValueError
from albef.files import printable

LONGEST_NAME = 300  # characters of a name that are shown
Broken = list[tuple[str, str]]  # name of an image, reason why it could not be read


class BrokenImage(AlbefValueError):
    """An image that cannot be read; the message says which, why, and what to do.

    Its name may come from a stranger's file: control characters in it are shown as escapes.
    """

    def __init__(self, name: str, reason: str, remedy: str) -> None:
        name, reason = _shortened(printable(name)), printable(reason)
        super().__init__(name, reason, remedy)
        self.name, self.reason, self.remedy = name, reason, remedy

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}; {self.remedy}"


class BrokenCounter:
    """Counts images that could not be read, and stops a run whose data are too bad.

    limit: tolerated share of the images seen, judged once `patience` of them were, or at the end.
    """

    def __init__(self, limit: float = 0.01, patience: int = 100) -> None:
        self.limit, self.patience = limit, patience
        self.seen = self.failures = 0
        self.reasons: dict[str, str] = {}

    def add(self, broken: Sequence[tuple[str, str]], read: int) -> None:
        """Count the `broken` entries of a batch and the `read` images that came out whole."""
        self.seen += len(broken) + read
        self.failures += len(broken)
        self.reasons.update(broken)

    def check(self, final: bool = False) -> None:
        """RuntimeError with up to ten names and reasons when more than `limit` of the images were broken."""
        if self.failures > self.limit * self.seen and (final or self.seen >= self.patience):
            raise AlbefRuntimeError(
                f"{self.report()}. More than {self.limit:.2%} is not tolerated: "
                "mend or remove these files, check image_root, or raise the limit"
            )

    def report(self) -> str:
        """One sentence, such as `2 of 1,000 images (0.20%) could not be read: a.jpg (damaged), b.jpg (empty)`."""
        if not self.failures:
            return f"all of {self.seen:,} images could be read"
        share = f"{self.failures:,} of {self.seen:,} images ({self.failures / self.seen:.2%})"
        return f"{share} could not be read: {listing(list(self.reasons.items()))}"


def _shortened(name: str) -> str:
    """A name, or the begin and the end of one that would fill the screen."""
    return name if len(name) <= LONGEST_NAME else f"{name[:100]} ... {name[-30:]}"


def listing(broken: Broken, shown: int = 10) -> str:
    """`a.jpg (damaged), b.jpg (empty)`, with at most `shown` of them."""
    listed = ", ".join(f"{name} ({reason})" for name, reason in broken[:shown])
    return listed + (f" and {len(broken) - shown} more" if len(broken) > shown else "")
