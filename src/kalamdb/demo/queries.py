"""The dozen queries of the tour.

Written for both sides as they are: the search path decides which tables they read. Each result is determined to the
last digit (sums of floating-point numbers are rounded), so that rows can be compared exactly; ``ordered`` says that
the order is determined too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Query:
    title: str
    sql: str
    ordered: bool = True


QUERIES = (
    Query(
        "one flight by its key",
        "SELECT dep_time, arr_time, tailnum, dest FROM flights"
        " WHERE time_hour = '2013-07-04 12:00:00+00' AND carrier = 'UA' AND flight = 1058 AND origin = 'LGA'",
    ),
    Query(
        "flights to Honolulu on New Year's Day",
        "SELECT carrier, flight, origin, dep_time, arr_delay FROM flights"
        " WHERE dest = 'HNL' AND month = 1 AND day = 1 ORDER BY carrier, flight",
    ),
    Query(
        "delays over fifteen hours",
        "SELECT time_hour, carrier, flight, dep_delay FROM flights WHERE dep_delay > 900"
        " ORDER BY dep_delay DESC, time_hour",
    ),
    Query(
        "cancelled flights by month (IS NULL, GROUP BY)",
        "SELECT month, count(*) FROM flights WHERE dep_time IS NULL GROUP BY month ORDER BY month",
    ),
    Query(
        "ten busiest destinations, with their names (join, top-N)",
        "SELECT f.dest, a.name, count(*) AS n FROM flights f LEFT JOIN airports a ON a.faa = f.dest"
        " GROUP BY f.dest, a.name ORDER BY n DESC, f.dest LIMIT 10",
    ),
    Query(
        "punctuality by airline (join, FILTER, HAVING)",
        "SELECT l.name, count(*) AS flights, round(avg(f.arr_delay), 3) AS mean_delay,"
        " count(*) FILTER (WHERE f.arr_delay <= 0) AS on_time"
        " FROM flights f JOIN airlines l USING (carrier) GROUP BY l.name HAVING count(*) > 1000"
        " ORDER BY mean_delay, l.name",
    ),
    Query(
        "five longest flights of each airport (window)",
        "SELECT * FROM (SELECT origin, dest, carrier, flight, time_hour, air_time, row_number() OVER"
        " (PARTITION BY origin ORDER BY air_time DESC, time_hour, carrier, flight) AS rank FROM flights"
        " WHERE air_time IS NOT NULL) AS ranked WHERE rank <= 5 ORDER BY origin, rank",
    ),
    Query(
        "seats flown by maker, planes before 1980 (join of three)",
        "SELECT p.manufacturer, l.name, count(*) AS flights, sum(p.seats) AS seats FROM flights f"
        " JOIN planes p USING (tailnum) JOIN airlines l USING (carrier) WHERE p.year < 1980"
        " GROUP BY p.manufacturer, l.name ORDER BY flights DESC, p.manufacturer, l.name",
    ),
    Query(
        "weather and delay at JFK (composite join)",
        "SELECT w.visib, count(*) AS flights, round(avg(f.dep_delay), 4) AS mean_delay FROM flights f"
        " JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour WHERE f.origin = 'JFK'"
        " GROUP BY w.visib ORDER BY w.visib",
    ),
    Query(
        "airports that no flight went to (anti join)",
        "SELECT a.faa, a.name FROM airports a WHERE NOT EXISTS (SELECT 1 FROM flights f WHERE f.dest = a.faa)",
        ordered=False,
    ),
    Query(
        "warmest hours of three airports (IN, float, top-N)",
        "SELECT origin, time_hour, temp, humid FROM weather WHERE origin IN ('JFK', 'LGA', 'EWR') AND temp >= 98.6"
        " ORDER BY temp DESC, origin, time_hour LIMIT 20",
    ),
    Query(
        "a day's flights, every column",
        "SELECT year, month, day, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, carrier,"
        " flight, tailnum, origin, dest, air_time, distance, hour, minute, time_hour FROM flights"
        " WHERE month = 12 AND day = 24",
        ordered=False,
    ),
)
