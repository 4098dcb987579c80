"""Functions and operators of the server's SQL: PostgreSQL's names and types, and the query engine's spelling.

A line is a promise that the result is PostgreSQL's for every value; the tests compare each with PostgreSQL. It reads
``name(argument types) result spelling``, with ``$1`` … for the arguments; ``!`` says that PostgreSQL has it and this
server has not. ``any`` takes every type, a result ``$1`` is that argument's type. In an aggregate, ``agg[…]`` marks the
call that takes DISTINCT, ORDER BY, FILTER and OVER. Numerics here are those in text form (``kalamdb.sql.kinds``);
arithmetic on numerics held as DECIMAL, comparisons and casts are made in ``kalamdb.sql.expressions``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from string import ascii_lowercase, ascii_uppercase

from kalamdb.errors import KalamError
from kalamdb.sql import fields, regression
from kalamdb.sql.kinds import ORDERS, STORED_INTERVAL, Kind, category, implicit, preferred
from kalamdb.sql.native import EPOCH_MICROS
from kalamdb.sql.native import failure as failure

_OVER, _UNDER = failure("22003", "value out of range: overflow"), failure("22003", "value out of range: underflow")
_ZERO = failure("22012", "division by zero")


def _float(sign: str, one: str, two: str) -> str:
    result = f"($1 {sign} $2)"
    checks = f"WHEN isinf({result}) AND NOT isinf($1) AND NOT isinf($2) THEN {_OVER}"
    if sign == "*":
        checks += f" WHEN {result} = 0 AND $1 <> 0 AND $2 <> 0 THEN {_UNDER}"
    elif sign == "/":
        checks = (f"WHEN $2 = 0 AND NOT isnan($1) THEN {_ZERO} WHEN isinf({result}) AND NOT isinf($1) THEN {_OVER}"
                  f" WHEN {result} = 0 AND $1 <> 0 AND NOT isinf($2) THEN {_UNDER}")
    return f"CASE {checks} ELSE {result} END"


#: by these names the query engine does not turn i + 1 > 0 into i > -1, or sum(i + 1) into a sum: they may overflow
_NAMED = {"+": "add", "-": "subtract", "*": "multiply"}


def _arithmetic() -> Iterator[str]:
    integers = ("int2", "int4", "int8")
    for one, two in product(integers, integers):
        wider = max(one, two)
        for sign, word in _NAMED.items():
            yield f"{sign}({one},{two}) {wider} {word}($1, $2)"
        for name, sign in (("/", "//"), ("%", "%")):
            same = "" if one == two else f"CAST(${1 if one < two else 2} AS {Kind(wider).duck})"
            left, right = (same or "$1", "$2") if one < two else ("$1", same or "$2")
            inner = f"{left} {sign} {right}"
            if name == "%":  # the smallest number by -1 is no overflow
                inner = f"CASE WHEN $2 = -1 THEN {left} * 0 ELSE {inner} END"
            yield f"{name}({one},{two}) {wider} CASE WHEN $2 = 0 AND $1 IS NOT NULL THEN {_ZERO} ELSE {inner} END"
        for name, sign in (("&", "&"), ("|", "|")):
            if one == two:
                yield f"{name}({one},{two}) {wider} ($1 {sign} $2)"
        if one == two:
            yield f"#({one},{two}) {wider} xor($1, $2)"
            yield f"~({one}) {one} (~$1)"
            yield f"-({one}) {one} subtract($1)"
            yield f"+({one}) {one} $1"
            yield f"abs({one}) {one} abs($1)"
            yield f"mod({one},{two}) {one} CASE WHEN $2 = 0 AND $1 IS NOT NULL THEN {_ZERO} " \
                  "WHEN $2 = -1 THEN $1 * 0 ELSE $1 % $2 END"
            yield f"@({one}) {one} abs($1)"
            bits = {"int2": 16, "int4": 32, "int8": 64}[one]
            for sign, word in (("<<", "left"), (">>", "right")):
                yield f"{sign}({one},int4) {one} CAST(kalam_i_{word}($1, $2, {bits}) AS {Kind(one).duck})"
    for one, two in product(("float4", "float8"), repeat=2):
        wider = max(one, two)
        cast = [f"CAST(${place} AS DOUBLE)" if each != wider else f"${place}" for place, each in ((1, one), (2, two))]
        for sign in "+-*/":
            text = _float(sign, one, two)
            if one != two:
                text = text.replace("$1", "\0").replace("$2", cast[1]).replace("\0", cast[0])
            yield f"{sign}({one},{two}) {wider} {text}"
    for name in ("float4", "float8"):
        yield f"-({name}) {name} (-$1)"
        yield f"+({name}) {name} $1"
        yield f"abs({name}) {name} abs($1)"
        yield f"@({name}) {name} abs($1)"


_OUT_OF_DOMAIN = failure("22003", "input is out of range")
_INFINITE_DATES = failure("22008", "cannot subtract infinite dates")
_INFINITE_TIMES = failure("22008", "cannot subtract infinite timestamps")
_ENDLESS = "$1 IS NOT NULL AND $2 IS NOT NULL AND NOT (isfinite($1) AND isfinite($2))"
_LENGTH = failure("22011", "negative substring length not allowed")
_NO_ROOT = failure("2201F", "cannot take square root of a negative number")
_LOG_ZERO = failure("2201E", "cannot take logarithm of zero")
_LOG_NEGATIVE = failure("2201E", "cannot take logarithm of a negative number")
_ASCII = "strlen($1) = length($1)"
_SUBSTR3 = ("CASE WHEN $3 < 0 AND $1 IS NOT NULL AND $2 IS NOT NULL THEN " + _LENGTH
            + " WHEN $2 IS NULL OR $3 IS NULL THEN NULL ELSE substring($1, greatest($2, 1), CAST(greatest(0,"
            " least(CAST($2 AS BIGINT) + $3, 2147483647) - greatest($2, 1)) AS BIGINT)) END")
_LEFT = "CASE WHEN $2 < 0 THEN left($1, greatest(0, length($1) + $2)) ELSE left($1, $2) END"
_RIGHT = "CASE WHEN $2 < 0 THEN substring($1, 1 - CAST($2 AS BIGINT)) ELSE right($1, $2) END"


_MOMENT = "kalam_read_timestamp(kalam_d_make_timestamp($1, $2, $3, $4, $5, $6))"
_EPOCH = "kalam_read_timestamptz(kalam_d_of_epoch($1))"


def _days(date: str, sign: str, days: str) -> str:
    """A date so many days later; the bounds are PostgreSQL's first and last date."""
    number = f"(({date} - DATE '1970-01-01') {sign} {days})"
    return (f"CASE WHEN NOT isfinite({date}) AND {days} IS NOT NULL THEN {date} WHEN {number} NOT BETWEEN -2440588 AND "
            f"2145042905 THEN {failure('22008', 'date out of range')} ELSE {date} {sign} {days} END")


def _moved(moment: str, sign: str, interval: str) -> str:
    """Before PostgreSQL's first timestamp the query engine still has some."""
    early = failure("22008", "timestamp out of range")
    return (f"CASE WHEN isfinite({moment}) AND {moment} {sign} {interval} < {fields.FIRST} THEN {early} "
            f"ELSE {moment} {sign} {interval} END")


def stored_interval(sql: str) -> str:
    """The query engine's interval of a stored one; NULL of one that is endless."""
    return f"(to_months(kalam_i_months({sql})) + to_days(kalam_i_days({sql})) + to_microseconds(kalam_i_micros({sql})))"


_EARLY = failure("22008", "timestamp out of range")


def _stored_moves() -> Iterator[str]:
    """Moments plus and minus stored intervals, which may be endless."""
    for name, of in (("timestamp", "$1"), ("date", fields.moment_of("$1"))):
        for sign in "+-":
            far = ("CASE WHEN ($2 = 'infinity') THEN {} ELSE {} END").format(*(
                f"CAST('{word}infinity' AS TIMESTAMP)" for word in (("", "-") if sign == "+" else ("-", ""))))
            moved = _moved(of, sign, stored_interval("$2"))
            sql = ("CASE WHEN $1 IS NULL OR $2 IS NULL THEN NULL WHEN $2 NOT IN ('infinity', '-infinity') THEN "
                   f"{moved} WHEN isfinite($1) OR {of} = {far} THEN {far} ELSE {_EARLY} END")
            yield f"{sign}({name},{STORED_INTERVAL}) timestamp {sql}"
            if sign == "+":
                turned = sql.replace("$1", "\0").replace("$2", "$1").replace("\0", "$2")
                yield f"+({STORED_INTERVAL},{name}) timestamp {turned}"


def _elapsed(first: str, second: str, message: str = "cannot subtract infinite timestamps") -> str:
    """Of moments one of which is endless, since PostgreSQL 17."""
    return (f"CASE WHEN $1 IS NULL OR $2 IS NULL THEN NULL WHEN isfinite($1) AND isfinite($2) THEN "
            f"kalam_as_interval(CAST($1 - $2 AS VARCHAR)) WHEN $1 = $2 THEN {failure('22008', message)} "
            f"WHEN $1 > $2 THEN {first} ELSE {second} END")


def _rounded(duck: str) -> str:
    """To so many digits of a second, half away from PostgreSQL's epoch."""
    unit, micros = "CAST(10 ** (6 - $2) AS BIGINT)", f"(epoch_us($1) - {EPOCH_MICROS})"
    whole = f"(abs({micros}) + {unit} // 2) // {unit} * {unit} * sign({micros})"
    return (f"CASE WHEN $2 IS NULL THEN NULL WHEN isfinite($1) AND $2 BETWEEN 0 AND 5 "
            f"THEN CAST(make_timestamp({whole} + {EPOCH_MICROS}) AS {duck}) ELSE $1 END")


def _overlaps() -> str:
    """PostgreSQL's rules for periods of which an end, or all, is NULL; the ends may come in either order."""
    one, two = "least($1, $2)", "least($3, $4)"
    ends = [f"CASE WHEN ${place} IS NOT NULL AND ${place + 1} IS NOT NULL THEN greatest(${place}, ${place + 1}) END"
            for place in (1, 3)]

    def later(start: str, end: str, other: str) -> str:
        return (f"CASE WHEN {end} IS NULL THEN NULL WHEN {start} < {end} THEN TRUE "
                f"WHEN {other} IS NOT NULL THEN FALSE END")

    return (f"CASE WHEN {one} > {two} THEN {later(one, ends[1], ends[0])} WHEN {one} < {two} "
            f"THEN {later(two, ends[0], ends[1])} WHEN {one} = {two} AND {ends[0]} IS NOT NULL "
            f"AND {ends[1]} IS NOT NULL THEN TRUE END")


_OVERLAPS = _overlaps()
#: PostgreSQL's RADIANS_PER_DEGREE
_DEGREE = "CAST('0.0174532925199432957692' AS DOUBLE)"


def _times(interval: str, number: str) -> str:
    """The query engine's own error would be one of integers."""
    out_of_range = failure("22008", "interval out of range")
    return f"coalesce(TRY({interval} * {number}), CASE WHEN $1 IS NOT NULL AND $2 IS NOT NULL THEN {out_of_range} END)"


def _of_ascii(name: str, old: str, new: str) -> str:
    """lower or upper as they are under the locale C."""
    return f"CASE WHEN {_ASCII} THEN {name}($1) ELSE translate($1, '{old}', '{new}') END"


def _overlay(length: str) -> str:
    """What stands before $3, then $2, then what follows so many letters."""
    after, given = f"(CAST($3 AS BIGINT) + {length})", f"$1 IS NOT NULL AND $2 IS NOT NULL AND {length} IS NOT NULL"
    return (f"CASE WHEN {given} AND $3 <= 0 THEN {_LENGTH} WHEN {given} AND {after} NOT BETWEEN -2147483648 AND "
            f"2147483647 THEN {failure('22003', 'integer out of range')} "
            f"ELSE left($1, $3 - 1) || $2 || substring($1, CASE WHEN {after} < 1 THEN 1 ELSE {after} END) END")


def _found(group: str) -> str:
    pattern = f"kalam_r_{group}($2)"
    return f"CASE WHEN regexp_matches($1, {pattern}, 's') THEN regexp_extract($1, {pattern}, 1, 's') END"


def _log(name: str) -> str:
    return f"CASE WHEN $1 = 0 THEN {_LOG_ZERO} WHEN $1 < 0 THEN {_LOG_NEGATIVE} ELSE {name}($1) END"


_LINES = rf"""
+(numeric,numeric) numeric kalam_n_add($1, $2)
-(numeric,numeric) numeric kalam_n_sub($1, $2)
*(numeric,numeric) numeric kalam_n_mul($1, $2)
/(numeric,numeric) numeric kalam_n_div($1, $2)
%(numeric,numeric) numeric kalam_n_mod($1, $2)
-(numeric) numeric kalam_n_neg($1)
+(numeric) numeric $1
^(float8,float8) float8 kalam_f_power($1, $2)
^(numeric,numeric) numeric !
mod(numeric,numeric) numeric kalam_n_mod($1, $2)
div(numeric,numeric) numeric kalam_n_quo($1, $2)
abs(numeric) numeric kalam_n_abs($1)
@(numeric) numeric kalam_n_abs($1)
sign(numeric) numeric kalam_n_sign($1)
scale(numeric) int4 kalam_n_scale($1)
min_scale(numeric) int4 kalam_n_min_scale($1)
trim_scale(numeric) numeric kalam_n_trim($1)
sign(float8) float8 CASE WHEN isnan($1) THEN 0 ELSE CAST(sign($1) AS DOUBLE) END
round(numeric) numeric kalam_n_round($1, 0)
round(numeric,int4) numeric kalam_n_round($1, $2)
round(float8) float8 CASE WHEN isfinite($1) THEN round_even($1, 0) ELSE $1 END
trunc(numeric) numeric kalam_n_trunc($1, 0)
trunc(numeric,int4) numeric kalam_n_trunc($1, $2)
trunc(float8) float8 trunc($1)
ceil(numeric) numeric kalam_n_ceil($1)
ceil(float8) float8 ceil($1)
ceiling(numeric) numeric kalam_n_ceil($1)
ceiling(float8) float8 ceil($1)
floor(numeric) numeric kalam_n_floor($1)
floor(float8) float8 floor($1)
sqrt(float8) float8 CASE WHEN $1 < 0 THEN {_NO_ROOT} ELSE sqrt($1) END
sqrt(numeric) numeric kalam_n_sqrt($1)
|/(float8) float8 CASE WHEN $1 < 0 THEN {_NO_ROOT} ELSE sqrt($1) END
numeric_typmod(numeric,int4) numeric kalam_n_typmod($1, $2)
cbrt(float8) float8 kalam_f_cbrt($1)
||/(float8) float8 kalam_f_cbrt($1)
sinh(float8) float8 kalam_f_sinh($1)
cosh(float8) float8 kalam_f_cosh($1)
tanh(float8) float8 tanh($1)
exp(float8) float8 kalam_f_exp($1)
exp(numeric) numeric !
ln(float8) float8 {_log('ln')}
ln(numeric) numeric !
log(float8) float8 {_log('log10')}
log10(float8) float8 {_log('log10')}
log(numeric) numeric !
log(numeric,numeric) numeric !
power(float8,float8) float8 kalam_f_power($1, $2)
power(numeric,numeric) numeric !
pow(float8,float8) float8 kalam_f_power($1, $2)
pow(numeric,numeric) numeric !
pi() float8 pi()
degrees(float8) float8 CASE WHEN isinf($1 / {_DEGREE}) AND NOT isinf($1) THEN {_OVER} ELSE $1 / {_DEGREE} END
radians(float8) float8 CASE WHEN $1 * {_DEGREE} = 0 AND $1 <> 0 THEN {_UNDER} ELSE $1 * {_DEGREE} END
sin(float8) float8 CASE WHEN isinf($1) THEN {_OUT_OF_DOMAIN} ELSE sin($1) END
cos(float8) float8 CASE WHEN isinf($1) THEN {_OUT_OF_DOMAIN} ELSE cos($1) END
tan(float8) float8 CASE WHEN isinf($1) THEN {_OUT_OF_DOMAIN} ELSE tan($1) END
atan(float8) float8 atan($1)
atan2(float8,float8) float8 atan2($1, $2)
asin(float8) float8 CASE WHEN $1 NOT BETWEEN -1 AND 1 AND NOT isnan($1) THEN {_OUT_OF_DOMAIN} ELSE asin($1) END
acos(float8) float8 CASE WHEN $1 NOT BETWEEN -1 AND 1 AND NOT isnan($1) THEN {_OUT_OF_DOMAIN} ELSE acos($1) END
random() float8 random()
gcd(int4,int4) int4 CAST(gcd(CAST($1 AS BIGINT), CAST($2 AS BIGINT)) AS INTEGER)
gcd(int8,int8) int8 CAST(gcd(CAST($1 AS HUGEINT), CAST($2 AS HUGEINT)) AS BIGINT)
lcm(int4,int4) int4 CAST(lcm(CAST($1 AS BIGINT), CAST($2 AS BIGINT)) AS INTEGER)
lcm(int8,int8) int8 CAST(lcm(CAST($1 AS HUGEINT), CAST($2 AS HUGEINT)) AS BIGINT)
gcd(numeric,numeric) numeric kalam_n_gcd($1, $2)
lcm(numeric,numeric) numeric kalam_n_lcm($1, $2)
factorial(int8) numeric kalam_n_factorial($1)
to_hex(int4) text lower(to_hex(CAST($1 AS BIGINT) & 4294967295))
to_hex(int8) text lower(to_hex($1))
kalam_int2_before_16(text) int2 kalam_old_int2($1)
kalam_int4_before_16(text) int4 kalam_old_int4($1)
kalam_int8_before_16(text) int8 kalam_old_int8($1)
kalam_numeric_before_16(text) numeric kalam_old_numeric($1)

||(text,text) text ($1 || $2)
||(bytea,bytea) bytea ($1 || $2)
||(jsonb,jsonb) jsonb kalam_j_concat($1, $2)
length(text) int4 CAST(length($1) AS INTEGER)
length(bytea) int4 CAST(octet_length($1) AS INTEGER)
char_length(text) int4 CAST(length($1) AS INTEGER)
character_length(text) int4 CAST(length($1) AS INTEGER)
octet_length(text) int4 CAST(strlen($1) AS INTEGER)
octet_length(bytea) int4 CAST(octet_length($1) AS INTEGER)
bit_length(text) int4 CAST(strlen($1) * 8 AS INTEGER)
bit_length(bytea) int4 CAST(octet_length($1) * 8 AS INTEGER)
kalam_varchar(varchar,int4,bool) varchar kalam_t_varchar($1, $2, $3)
substr(bytea,int4) bytea kalam_b_part($1, $2)
substr(bytea,int4,int4) bytea kalam_b_part3($1, $2, $3)
substring(bytea,int4) bytea kalam_b_part($1, $2)
substring(bytea,int4,int4) bytea kalam_b_part3($1, $2, $3)
position(bytea,bytea) int4 kalam_b_place($1, $2)
overlay(bytea,bytea,int4) bytea kalam_b_overlay($1, $2, $3)
overlay(bytea,bytea,int4,int4) bytea kalam_b_overlay4($1, $2, $3, $4)
btrim(bytea,bytea) bytea kalam_b_trim($1, $2)
ltrim(bytea,bytea) bytea kalam_b_ltrim($1, $2)
rtrim(bytea,bytea) bytea kalam_b_rtrim($1, $2)
get_byte(bytea,int4) int4 kalam_b_byte($1, $2)
set_byte(bytea,int4,int4) bytea kalam_b_set_byte($1, $2, $3)
get_bit(bytea,int8) int4 kalam_b_bit($1, $2)
set_bit(bytea,int8,int4) bytea kalam_b_set_bit($1, $2, $3)
bit_count(bytea) int8 kalam_b_bits($1)
kalam_like(bytea,bytea) bool kalam_b_like($1, $2)
kalam_unlike(bytea,bytea) bool (NOT kalam_b_like($1, $2))
lower(text) text CASE WHEN {_ASCII} THEN lower($1) ELSE kalam_t_lower($1) END
upper(text) text CASE WHEN {_ASCII} THEN upper($1) ELSE kalam_t_upper($1) END
initcap(text) text kalam_t_initcap($1)
kalam_c_lower(text) text {_of_ascii("lower", ascii_uppercase, ascii_lowercase)}
kalam_c_upper(text) text {_of_ascii("upper", ascii_lowercase, ascii_uppercase)}
kalam_c_initcap(text) text kalam_t_c_initcap($1)
substr(text,int4) text substring($1, CASE WHEN $2 < 1 THEN 1 ELSE $2 END)
substr(text,int4,int4) text {_SUBSTR3}
substring(text,int4) text substring($1, CASE WHEN $2 < 1 THEN 1 ELSE $2 END)
substring(text,int4,int4) text {_SUBSTR3}
substring(text,text) text !
left(text,int4) text {_LEFT}
right(text,int4) text {_RIGHT}
position(text,text) int4 CAST(strpos($1, $2) AS INTEGER)
strpos(text,text) int4 CAST(strpos($1, $2) AS INTEGER)
replace(text,text,text) text CASE WHEN $2 = '' AND $3 IS NOT NULL THEN $1 ELSE replace($1, $2, $3) END
btrim(text) text trim($1, ' ')
btrim(text,text) text trim($1, $2)
ltrim(text) text ltrim($1, ' ')
ltrim(text,text) text ltrim($1, $2)
rtrim(text) text rtrim($1, ' ')
rtrim(text,text) text rtrim($1, $2)
lpad(text,int4) text kalam_t_lpad($1, $2, ' ')
lpad(text,int4,text) text kalam_t_lpad($1, $2, $3)
rpad(text,int4) text kalam_t_rpad($1, $2, ' ')
rpad(text,int4,text) text kalam_t_rpad($1, $2, $3)
repeat(text,int4) text kalam_t_repeat($1, $2)
reverse(text) text CASE WHEN {_ASCII} THEN reverse($1) ELSE kalam_t_reverse($1) END
split_part(text,text,int4) text kalam_t_split($1, $2, $3)
translate(text,text,text) text kalam_t_translate($1, $2, $3)
starts_with(text,text) bool starts_with($1, $2)
^@(text,text) bool starts_with($1, $2)
md5(text) text md5($1)
md5(bytea) text md5($1)
sha224(bytea) bytea kalam_b_sha224($1)
sha256(bytea) bytea unhex(sha256($1))
sha384(bytea) bytea kalam_b_sha384($1)
sha512(bytea) bytea kalam_b_sha512($1)
ascii(text) int4 CASE WHEN $1 = '' THEN CAST(0 AS INTEGER) ELSE CAST(unicode($1) AS INTEGER) END
chr(int4) text kalam_t_chr($1)
quote_literal(text) text kalam_t_quote($1)
quote_nullable(text) text coalesce(kalam_t_quote($1), 'NULL')
encode(bytea,text) text kalam_t_encode($1, $2)
decode(text,text) bytea kalam_t_decode($1, $2)
overlay(text,text,int4) text {_overlay("length($2)")}
overlay(text,text,int4,int4) text {_overlay("$4")}
kalam_matches(text,text) bool regexp_matches($1, kalam_r_plain($2), 's')
kalam_matches_any_case(text,text) bool regexp_matches($1, kalam_r_folded($2), 's')
kalam_replaced(text,text,text) text regexp_replace($1, kalam_r_replaced($2), $3, 's')
kalam_replaced_all(text,text,text) text regexp_replace($1, kalam_r_replaced($2), $3, 'gs')
kalam_found(text,text) text {_found("first")}
kalam_found_whole(text,text) text {_found("whole")}
regexp_replace(text,text,text) text !
regexp_replace(text,text,text,text) text !
regexp_match(text,text) text !
regexp_matches(text,text) text !
to_char(timestamp,text) text !
to_char(timestamptz,text) text !
to_char(numeric,text) text !
to_char(int8,text) text !
to_char(float8,text) text !
to_date(text,text) date !
to_timestamp(text,text) timestamptz !
to_number(text,text) numeric !

+(date,int4) date {_days("$1", "+", "$2")}
+(int4,date) date {_days("$2", "+", "$1")}
-(date,int4) date {_days("$1", "-", "$2")}
-(date,date) int4 CASE WHEN {_ENDLESS} THEN {_INFINITE_DATES} ELSE CAST($1 - $2 AS INTEGER) END
+(interval,date) timestamp CASE WHEN $1 IS NOT NULL THEN {_moved(fields.moment_of("$2"), "+", "$1")} END
+(date,interval) timestamp CASE WHEN $2 IS NOT NULL THEN {_moved(fields.moment_of("$1"), "+", "$2")} END
-(date,interval) timestamp CASE WHEN $2 IS NOT NULL THEN {_moved(fields.moment_of("$1"), "-", "$2")} END
+(timestamp,interval) timestamp {_moved("$1", "+", "$2")}
+(interval,timestamp) timestamp {_moved("$2", "+", "$1")}
-(timestamp,interval) timestamp {_moved("$1", "-", "$2")}
+(timestamptz,interval) timestamptz {_moved("$1", "+", "$2")}
+(interval,timestamptz) timestamptz {_moved("$2", "+", "$1")}
-(timestamptz,interval) timestamptz {_moved("$1", "-", "$2")}
-(timestamp,timestamp) interval CASE WHEN {_ENDLESS} THEN {_INFINITE_TIMES} ELSE $1 - $2 END
-(timestamptz,timestamptz) interval CASE WHEN {_ENDLESS} THEN {_INFINITE_TIMES} ELSE $1 - $2 END
+(interval,interval) interval ($1 + $2)
-(interval,interval) interval ($1 - $2)
-(interval) interval (-$1)
*(interval,int4) interval {_times("$1", "$2")}
*(int4,interval) interval {_times("$2", "$1")}
*(interval,float8) interval !
*(float8,interval) interval !
/(interval,float8) interval !
+({STORED_INTERVAL},{STORED_INTERVAL}) {STORED_INTERVAL} kalam_i_add($1, $2)
-({STORED_INTERVAL},{STORED_INTERVAL}) {STORED_INTERVAL} kalam_i_sub($1, $2)
-({STORED_INTERVAL}) {STORED_INTERVAL} kalam_i_neg($1)
+(time,{STORED_INTERVAL}) time kalam_i_time_plus($1, $2)
+({STORED_INTERVAL},time) time kalam_i_time_plus($2, $1)
-(time,{STORED_INTERVAL}) time kalam_i_time_minus($1, $2)
-(time,time) {STORED_INTERVAL} kalam_i_between($1, $2)
kalam_elapsed(timestamp,timestamp) {STORED_INTERVAL} {_elapsed("'infinity'", "'-infinity'", "interval out of range")}
kalam_elapsed_before_17(timestamp,timestamp) {STORED_INTERVAL} {_elapsed(_INFINITE_TIMES, _INFINITE_TIMES)}
network_sub(inet,inet) bool kalam_a_inside($1, $2)
network_subeq(inet,inet) bool kalam_a_within($1, $2)
network_sup(inet,inet) bool kalam_a_inside($2, $1)
network_supeq(inet,inet) bool kalam_a_within($2, $1)
network_overlap(inet,inet) bool kalam_a_overlaps($1, $2)
host(inet) text split_part($1, '/', 1)
family(inet) int4 CAST(CASE contains($1, ':') WHEN TRUE THEN 6 WHEN FALSE THEN 4 END AS INTEGER)
masklen(inet) int4 kalam_a_masklen($1)
network(inet) cidr kalam_a_network($1)
inet_text(inet) text CASE WHEN contains($1, '/') THEN $1 WHEN contains($1, ':') THEN $1 || '/128' ELSE $1 || '/32' END
bpchar_text(bpchar) text rtrim($1, ' ')
kalam_padded(bpchar) text $1
length(bpchar) int4 CAST(length(rtrim($1, ' ')) AS INTEGER)
char_length(bpchar) int4 CAST(length(rtrim($1, ' ')) AS INTEGER)
character_length(bpchar) int4 CAST(length(rtrim($1, ' ')) AS INTEGER)

isfinite(date) bool isfinite($1)
isfinite(timestamp) bool isfinite($1)
isfinite(timestamptz) bool isfinite($1)
kalam_rounded(timestamp,int4) timestamp {_rounded("TIMESTAMP")}
kalam_rounded(timestamptz,int4) timestamptz {_rounded("TIMESTAMPTZ")}
kalam_overlaps(timestamp,timestamp,timestamp,timestamp) bool {_OVERLAPS}
kalam_overlaps(timestamptz,timestamptz,timestamptz,timestamptz) bool {_OVERLAPS}
make_date(int4,int4,int4) date kalam_read_date(kalam_d_make($1, $2, $3))
to_timestamp(float8) timestamptz {_EPOCH}
age(timestamp,timestamp) interval !
age(timestamptz,timestamptz) interval !
age(timestamp) interval !
age(timestamptz) interval !
make_timestamp(int4,int4,int4,int4,int4,float8) timestamp {_MOMENT}
date_trunc(text,interval) interval !
date_bin(interval,timestamp,timestamp) timestamp !
clock_timestamp() timestamptz get_current_timestamp()

->(jsonb,text) jsonb kalam_j_get($1, $2)
->(jsonb,int4) jsonb kalam_j_item($1, $2)
->>(jsonb,text) text kalam_j_get_text($1, $2)
->>(jsonb,int4) text kalam_j_item_text($1, $2)
->(json,text) json kalam_o_get($1, $2)
->(json,int4) json kalam_o_item($1, $2)
->>(json,text) text kalam_o_get_text($1, $2)
->>(json,int4) text kalam_o_item_text($1, $2)
#>(jsonb,text[]) jsonb kalam_j_path($1, $2)
#>>(jsonb,text[]) text kalam_j_path_text($1, $2)
#>>(json,text[]) text kalam_o_path_text($1, $2)
#>(json,text[]) json kalam_o_path($1, $2)
@>(jsonb,jsonb) bool kalam_j_contains($1, $2)
<@(jsonb,jsonb) bool kalam_j_contains($2, $1)
?(jsonb,text) bool kalam_j_exists($1, $2)
jsonb_exists(jsonb,text) bool kalam_j_exists($1, $2)
?|(jsonb,text[]) bool kalam_j_any($1, $2)
jsonb_exists_any(jsonb,text[]) bool kalam_j_any($1, $2)
?&(jsonb,text[]) bool kalam_j_all($1, $2)
jsonb_exists_all(jsonb,text[]) bool kalam_j_all($1, $2)
jsonb_typeof(jsonb) text kalam_j_typeof($1)
json_typeof(json) text kalam_j_typeof($1)
jsonb_array_length(jsonb) int4 kalam_j_length($1)
json_array_length(json) int4 kalam_j_length($1)
jsonb_build_object(any) jsonb !
json_build_object(any) json !
row_to_json(any) json !
jsonb_agg(any) jsonb !
json_agg(any) json !
jsonb_set(jsonb,text[],jsonb) jsonb kalam_j_set($1, $2, $3, TRUE)
jsonb_set(jsonb,text[],jsonb,bool) jsonb kalam_j_set($1, $2, $3, $4)
jsonb_insert(jsonb,text[],jsonb) jsonb kalam_j_insert($1, $2, $3, FALSE)
jsonb_insert(jsonb,text[],jsonb,bool) jsonb kalam_j_insert($1, $2, $3, $4)
jsonb_strip_nulls(jsonb) jsonb kalam_j_strip($1, FALSE)
jsonb_strip_nulls(jsonb,bool) jsonb kalam_j_strip($1, $2)
jsonb_pretty(jsonb) text kalam_j_pretty($1)
-(jsonb,text) jsonb kalam_j_drop($1, $2)
-(jsonb,int4) jsonb kalam_j_drop_item($1, $2)
-(jsonb,text[]) jsonb kalam_j_drop_all($1, $2)
#-(jsonb,text[]) jsonb kalam_j_drop_path($1, $2)
kalam_json_known(jsonb) jsonb CASE WHEN $1 <> 'null' THEN $1 END
"""

_INT_SUM = "agg[sum($1)]"
_INF_SUM = (f"CASE WHEN isinf(agg[sum($1)]) AND NOT agg[bool_or(isinf($1))] THEN {_OVER} "
            "ELSE agg[sum($1)] END")
#: PostgreSQL adds up the squares of their deviations, too, and they may not overflow either
_FLOAT_AVG = ("CASE WHEN agg[bool_and(isfinite($1))] AND (isinf(agg[var_pop($1)]) OR isinf(agg[sum($1)])) "
              f"THEN {_OVER} ELSE agg[avg($1)] END")


def _statistics() -> Iterator[str]:
    for name in ("stddev", "stddev_samp", "stddev_pop", "variance", "var_samp", "var_pop"):
        duck = {"stddev": "stddev_samp", "variance": "var_samp"}.get(name, name)
        finite = f"CASE WHEN agg[bool_and(isfinite($1))] THEN agg[{duck}($1)] " \
                 "WHEN agg[count($1)] = 0 THEN NULL ELSE CAST('NaN' AS DOUBLE) END"
        over = f"CASE WHEN isinf(agg[var_pop($1)]) THEN {_OVER} ELSE agg[{duck}($1)] END"
        finite = finite.replace(f"agg[{duck}($1)]", over)
        if duck.endswith("samp"):
            finite = f"CASE WHEN agg[count($1)] < 2 THEN NULL ELSE {finite} END"
        yield f"{name}(float8) float8 {finite}"
        yield f"{name}(float4) float8 " + finite.replace("$1", "CAST($1 AS DOUBLE)")
        yield f"{name}(numeric) numeric kalam_n_{duck}(agg[list($1)])"
        for integer in ("int2", "int4", "int8"):
            yield f"{name}({integer}) numeric kalam_n_{duck}(agg[list(CAST($1 AS VARCHAR))])"


def _regression() -> Iterator[str]:
    for name in regression.NAMES:
        yield f"{name}(float8,float8) float8 kalam_a_{name}(agg[list($1)], agg[list($2)])"


def _extremes() -> Iterator[str]:
    for name in ("int2", "int4", "int8", "float4", "float8", "text", "date", "timestamp", "timestamptz", "interval"):
        for aggregate in ("min", "max"):
            yield f"{aggregate}({name}) {name} agg[{aggregate}($1)]"
    for name, key in ORDERS.items():
        for aggregate in ("min", "max"):
            call = f"{aggregate}($1)" if key == "$1" else f"arg_{aggregate}($1, {key})"
            yield f"{aggregate}({name}) $1 agg[{call}]"
    yield "min(numeric) numeric agg[arg_min($1, kalam_n_key($1))]"
    yield "max(numeric) numeric agg[arg_max($1, kalam_n_key($1))]"


_AGGREGATES = rf"""
count(any) int8 agg[count($1)]
sum(int2) int8 CAST({_INT_SUM} AS BIGINT)
sum(int4) int8 CAST({_INT_SUM} AS BIGINT)
sum(int8) numeric CAST({_INT_SUM} AS VARCHAR)
sum(float4) float4 CAST({_INF_SUM} AS FLOAT)
sum(float8) float8 {_INF_SUM}
sum(numeric) numeric kalam_n_sum(agg[list($1)])
sum(interval) interval !
avg(int2) numeric kalam_n_div(CAST({_INT_SUM} AS VARCHAR), CAST(nullif(agg[count($1)], 0) AS VARCHAR))
avg(int4) numeric kalam_n_div(CAST({_INT_SUM} AS VARCHAR), CAST(nullif(agg[count($1)], 0) AS VARCHAR))
avg(int8) numeric kalam_n_div(CAST({_INT_SUM} AS VARCHAR), CAST(nullif(agg[count($1)], 0) AS VARCHAR))
avg(numeric) numeric kalam_n_div(kalam_n_sum(agg[list($1)]), CAST(nullif(agg[count($1)], 0) AS VARCHAR))
avg(float4) float8 agg[avg(CAST($1 AS DOUBLE))]
avg(float8) float8 {_FLOAT_AVG}
avg(interval) interval !
bool_and(bool) bool agg[bool_and($1)]
bool_or(bool) bool agg[bool_or($1)]
every(bool) bool agg[bool_and($1)]
bit_and(int2) int2 agg[bit_and($1)]
bit_and(int4) int4 agg[bit_and($1)]
bit_and(int8) int8 agg[bit_and($1)]
bit_or(int2) int2 agg[bit_or($1)]
bit_or(int4) int4 agg[bit_or($1)]
bit_or(int8) int8 agg[bit_or($1)]
bit_xor(int2) int2 agg[bit_xor($1)]
bit_xor(int4) int4 agg[bit_xor($1)]
bit_xor(int8) int8 agg[bit_xor($1)]
string_agg(text,text) text agg[string_agg($1, coalesce($2, ''))]
array_agg(any) $1[] agg[array_agg($1)]
any_value(any) $1 agg[any_value($1)]
regr_count(float8,float8) int8 agg[count(CASE WHEN $1 IS NOT NULL AND $2 IS NOT NULL THEN 1 END)]
percentile_cont(float8) float8 !
percentile_disc(float8) float8 !
mode() any !
"""


def _at_least_one(of: str, code: str, place: int) -> str:
    wrong = failure(code, f"argument of {of} must be greater than zero")
    return f"CASE WHEN ${place} < 1 THEN {wrong} ELSE ${place} END"


#: functions that only a window has
_WINDOWS = f"""
row_number() int8 agg[row_number()]
rank() int8 agg[rank()]
dense_rank() int8 agg[dense_rank()]
percent_rank() float8 agg[percent_rank()]
cume_dist() float8 agg[cume_dist()]
ntile(int4) int4 CAST(agg[ntile({_at_least_one('ntile', '22014', 1)})] AS INTEGER)
lag(any) $1 agg[lag($1)]
lag(any,int4) $1 agg[lag($1, $2)]
lag(any,int4,any) $1 agg[lag($1, $2, $3)]
lead(any) $1 agg[lead($1)]
lead(any,int4) $1 agg[lead($1, $2)]
lead(any,int4,any) $1 agg[lead($1, $2, $3)]
first_value(any) $1 agg[first_value($1)]
last_value(any) $1 agg[last_value($1)]
nth_value(any,int4) $1 agg[nth_value($1, {_at_least_one('nth_value', '22016', 2)})]
"""


#: functions that PostgreSQL has and this server has not in any form
UNSUPPORTED = frozenset({
    "abbrev", "array_append", "array_cat", "array_fill", "array_position", "array_remove", "array_replace",
    "array_to_json", "array_to_string", "convert_from", "convert_to", "cot",
    "currval", "date_add", "erf", "format_type", "host", "json_agg",
    "json_array_elements", "json_build_array", "json_build_object", "json_each", "json_extract_path", "json_object",
    "json_object_agg", "json_object_keys", "json_populate_record", "jsonb_array_elements", "jsonb_build_array",
    "jsonb_build_object", "jsonb_each", "jsonb_extract_path", "jsonb_object", "jsonb_object_agg",
    "jsonb_object_keys", "jsonb_path_exists", "jsonb_path_query",
    "justify_days", "justify_hours", "justify_interval", "lastval", "localtime", "make_interval", "make_time",
    "make_timestamptz", "nextval", "normalize", "num_nonnulls", "num_nulls",
    "obj_description",
    "parse_ident", "pg_get_serial_sequence", "quote_ident", "regexp_count", "regexp_instr",
    "regexp_like", "regexp_split_to_array", "regexp_split_to_table", "regexp_substr", "row_to_json", "setval",
    "set_config", "current_setting", "sind", "cosd", "string_to_array",
    "string_to_table", "tand", "timezone", "timeofday", "to_ascii", "to_json", "to_jsonb",
    "to_tsquery", "to_tsvector", "trim_array", "txid_current", "unistr", "width_bucket", "asinh", "acosh",
    "atanh", "json_array_elements_text", "jsonb_array_elements_text", "array_upper", "array_lower",
    "array_ndims", "array_dims", "array_prepend", "array_positions", "xmlagg", "rank_agg", "pg_sleep", "pg_column_size",
    "pg_size_pretty", "has_table_privilege", "to_regclass", "inet_client_addr", "pg_is_in_recovery", "format",
})


@dataclass(frozen=True, slots=True)
class Signature:
    name: str
    args: tuple[str, ...]
    result: str
    template: str
    aggregate: bool = False
    window: bool = False

    @property
    def supported(self) -> bool:
        return self.template != "!"


_LINE = re.compile(r"(\S+?)\(([^()]*)\) (\S+) (.+)")


def _parse(lines: Sequence[str], *, aggregate: bool = False, window: bool = False) -> Iterator[Signature]:
    for line in lines:
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        assert found is not None, line
        name, args, result, template = found.groups()
        yield Signature(name, tuple(filter(None, args.split(","))), result, template, aggregate, window)


SIGNATURES: tuple[Signature, ...] = (
    *_parse([*_arithmetic(), *_LINES.splitlines(), *_stored_moves(), *fields.lines()]),
    *_parse([*_AGGREGATES.splitlines(), *_statistics(), *_regression(), *_extremes()], aggregate=True),
    *_parse(_WINDOWS.splitlines(), window=True),
)
BY_NAME: dict[str, list[Signature]] = {}
for _signature in SIGNATURES:
    BY_NAME.setdefault(_signature.name, []).append(_signature)


# ---------- resolution ----------
def _reaches(given: str, wanted: str) -> bool:
    return given == "unknown" or wanted == "any" or implicit(given, wanted)


def resolve(candidates: Sequence[Signature], given: Sequence[str]) -> Signature | None:
    """The candidate that PostgreSQL would choose; None if there is none. Raises 42725 where it could not choose."""
    given = ["text" if name == "varchar" else name for name in given]
    fitting = [each for each in candidates if len(each.args) == len(given)]
    for each in fitting:
        if list(each.args) == given:
            return each
    fitting = [each for each in fitting if all(map(_reaches, given, each.args))]
    fitting = _best(fitting, lambda each: sum(map(str.__eq__, given, each.args)))
    fitting = _best(fitting, lambda each: sum(
        one != "unknown" and (one == two or preferred(two)) for one, two in zip(given, each.args, strict=True)))
    if len(fitting) > 1 and "unknown" in given:
        fitting = _guess(fitting, given)
    if len(fitting) > 1:
        raise KalamError("42725", f"function {fitting[0].name}({', '.join(given)}) is not unique",
                         hint="Could not choose a best candidate function. You might need to add explicit type casts.")
    return fitting[0] if fitting else None


def _best(fitting: list[Signature], score: Callable[[Signature], int]) -> list[Signature]:
    if len(fitting) < 2:
        return fitting
    scores = [score(each) for each in fitting]
    return [each for each, found in zip(fitting, scores, strict=True) if found == max(scores)]


def _guess(fitting: list[Signature], given: Sequence[str]) -> list[Signature]:
    """Unknown literals: text where a candidate takes it, else the one category's preferred type."""
    for place, name in enumerate(given):
        if name != "unknown":
            continue
        offered = {each.args[place] for each in fitting}
        if any(category(each) == "S" for each in offered):
            fitting = [each for each in fitting if category(each.args[place]) == "S"]
        elif len({category(each) for each in offered}) == 1 and any(map(preferred, offered)):
            fitting = [each for each in fitting if preferred(each.args[place])]
    known = {category(name) for name in given if name != "unknown"}
    if len(fitting) > 1 and len(known) == 1:  # an operator's unknown side is like the other
        same = [each for each in fitting if all(category(name) in known for name in each.args)]
        fitting = same or fitting
    return fitting
