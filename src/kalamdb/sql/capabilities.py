"""What the extension may send: one line per operator and type that this server evaluates exactly as PostgreSQL does.

A line is a promise; the tests compare every one with PostgreSQL over edge values. The rows are those of
``SHOW CAPABILITIES`` (docs/protocol.md). Functions, operators and aggregates are those of ``kalamdb.sql.functions``
without what PostgreSQL computes otherwise from place to place: by the session's time zone, the locale, the C library
or the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from kalamdb import __version__, kept
from kalamdb.sql import libm, regression
from kalamdb.sql.bind import MARK
from kalamdb.sql.functions import SIGNATURES, Signature
from kalamdb.sql.kinds import STORED_INTERVAL

CapabilityRow = tuple[str, str, str, str, str]

EQUALITY = ("=", "<>")
ORDER = ("<", "<=", ">", ">=")

#: name in pg_catalog, wire layout, name in server SQL, flags
TYPES: tuple[tuple[str, str, str, str], ...] = (
    ("bool", "bool", "boolean", "key"),
    ("int2", "int16", "smallint", "key"),
    ("int4", "int32", "integer", "key"),
    ("int8", "int64", "bigint", "key"),
    ("float4", "float32", "real", "key"),
    ("float8", "float64", "double precision", "key"),
    ("numeric", "utf8", "numeric", "key"),
    ("text", "utf8", "text", "key"),
    ("varchar", "utf8", "varchar", "key"),
    ("bytea", "binary", "bytea", "key"),
    ("date", "int32", "date", "key"),
    ("timestamp", "int64", "timestamp", "key"),
    ("timestamptz", "int64", "timestamptz", "key"),
    ("uuid", "binary", "uuid", "key"),
    ("json", "utf8", "json", ""),
    ("jsonb", "utf8", "jsonb", "key"),
)
#: kept as text that is one for all equal values, and declared as text
_WRITTEN_AS_EQUAL = ("char", "money", "name", "oid", "pg_lsn", "tsvector", "xid8")
#: of these and of enums it is known which are equal, and no more
WRITTEN_AS_EQUAL = (*(name for name in _WRITTEN_AS_EQUAL if name != "tsvector"), "anyenum")
_REMOTE = {name: remote for name, _, remote, _ in TYPES}
#: kinds of expressions whose type is kept as text, by its name in pg_catalog
_KEPT = {STORED_INTERVAL if each.name == "interval" else each.name: each.name for each in kept.ORDERED}

#: pairs of types whose comparison operators exist in PostgreSQL and are evaluated here
COMPARABLE: tuple[tuple[str, str], ...] = (
    *product(("int2", "int4", "int8"), ("int2", "int4", "int8")),
    *product(("float4", "float8"), ("float4", "float8")),
    ("bool", "bool"),
    ("numeric", "numeric"),
    ("text", "text"),
    ("bytea", "bytea"),
    ("uuid", "uuid"),
    ("date", "date"),
    ("timestamp", "timestamp"),
    ("timestamptz", "timestamptz"),
    *((each.name, each.name) for each in kept.ORDERED if each.name != "cidr"),  # which PostgreSQL compares as inet
)


def _comparison(name: str, left: str, right: str) -> CapabilityRow:
    flags = "plain"
    if left in ("text", "bpchar"):
        flags += " d" if name in EQUALITY else " c"
    return "operator", name, f"{left},{right}", f"($1 {name} $2)", flags


def comparisons() -> list[CapabilityRow]:
    """What the store evaluates by itself."""
    made = [_comparison(name, left, right) for left, right in COMPARABLE for name in EQUALITY + ORDER]
    return made + [_comparison(name, each, each) for each in WRITTEN_AS_EQUAL for name in EQUALITY]


def compared() -> Iterator[CapabilityRow]:
    """Types kept as text that conditions, groups and orders may name: the type by which parameters are announced, and
    how a column is written, which may be an older table's and declared as text."""
    for each in kept.ORDERED:
        yield "compared", each.name, each.name, f"{MARK}{each.name}($1)", ""
    for name in WRITTEN_AS_EQUAL:
        yield "compared", name, "text", "$1", ""


# ---------- operators and functions ----------
#: a letter's other case is the locale's; the locale C knows letters of ASCII
_LOCALE = frozenset({"lower", "upper", "initcap"})
#: the last digit is the C library's
_LIBRARY = frozenset({"power", "pow", "^", "exp", "ln", "log", "log10", "cbrt", "||/", "sin", "cos", "tan", "atan",
                      "atan2", "asin", "acos", "sinh", "cosh", "tanh"})
_VOLATILE = frozenset({"random", "clock_timestamp"})
#: their last years are beyond the query engine's timestamps
_FAR = frozenset({"make_timestamp"})
#: that PostgreSQL refuses to evaluate under nondeterministic collations, or evaluates otherwise
_COLLATED = frozenset({"position", "strpos", "replace", "split_part", "starts_with", "^@"})
#: what they count are the bytes, or what they make are the characters, of the database's encoding
_ENCODED = frozenset({"octet_length", "bit_length", "md5", "ascii", "chr"})
#: written otherwise than as a call
_TEMPLATES = {"position": "strpos($1, $2)", "^@": "starts_with($1, $2)", "?|": "jsonb_exists_any($1, $2)",
              "?&": "jsonb_exists_all($1, $2)", "@": "abs($1)", "|/": "sqrt($1)", "||/": "cbrt($1)"}
#: called otherwise in pg_catalog
LOCAL_NAMES = {"extract_field": "extract", "numeric_typmod": "numeric", "inet_text": "text", "bpchar_text": "text",
               "kalam_varchar": "varchar", "kalam_overlaps": "overlaps"}
#: a change by a path, or by more than one key, refuses arrays of more dimensions
_PATHS = frozenset({"-", "#-", "jsonb_set", "jsonb_insert"})
#: constants by which PostgreSQL knows UTC
_UTC = "const1=UTC|GMT|Z|Etc/UTC"
#: regular expressions: whether one matches, and where
_MATCHES = (("~", "kalam_matches($1, $2)", "d"), ("!~", "(NOT kalam_matches($1, $2))", "d"),
            ("~*", "kalam_matches_any_case($1, $2)", "a"), ("!~*", "(NOT kalam_matches_any_case($1, $2))", "a"))
_FOUND = (("regexp_replace", "text,text,text", "kalam_replaced($1, $2, $3)"),
          ("regexp_replace", "text,text,text,text", "kalam_replaced_all($1, $2, $3)"),
          ("substring", "text,text", "kalam_found($1, $2)"),
          ("regexp_substr", "text,text", "kalam_found_whole($1, $2)"))
#: by name in pg_catalog and types
_PATTERNS = (("~~", "($1 LIKE $2)"), ("!~~", "($1 NOT LIKE $2)"))
_ANY_CASE = (("~~*", "(kalam_c_lower($1) LIKE kalam_c_lower($2))"),
             ("!~~*", "(kalam_c_lower($1) NOT LIKE kalam_c_lower($2))"))
_CASTS = (
    *((one, two) for one, two in product(("int2", "int4", "int8", "float4", "float8", "numeric"), repeat=2)
      if one != two),
    ("bool", "int4"), ("int4", "bool"), ("bool", "text"), ("timestamp", "date"), ("date", "timestamp"),
)  # fmt: skip
_OF_JSONB = ("bool", "int2", "int4", "int8", "numeric", "float4", "float8")
#: whose text is the same whatever a session sets
_WRITTEN = ("int2", "int4", "int8", "numeric", "uuid", "json", "jsonb")
#: that are read from text by rules which no setting changes, and those whose rules are others since PostgreSQL 16
_READ, _READ_ANEW = ("bool", "float4", "float8", "uuid"), ("int2", "int4", "int8", "numeric")


def _flags(signature: Signature) -> str:
    flags = []
    if signature.args[0] != "bytea" and signature.name in _COLLATED:
        flags.append("d")
    if signature.args[0] != "bytea" and signature.name in _ENCODED:
        flags.append("u")
    if signature.name in _LIBRARY:
        flags.append("libm")
    if signature.name in ("<<", ">>"):
        flags.append("shift")
    if signature.name in _PATHS and "text[]" in signature.args:
        flags.append("flat")
    if (signature.name, signature.args) == ("jsonb_strip_nulls", ("jsonb", "bool")):
        flags.append("from18")
    if (signature.name, signature.args) == ("jsonb_strip_nulls", ("jsonb",)):
        flags.append("before18")
    return " ".join(flags)


def _args(signature: Signature) -> str:
    return ",".join(_KEPT.get(name, name) for name in signature.args).replace("text[]", "_text")


def _template(signature: Signature) -> str:
    marks = [f"${place}" for place in range(1, len(signature.args) + 1)]
    if (signature.name, signature.args[0]) == ("position", "bytea"):
        return "position($2 IN $1)"
    if signature.name in _TEMPLATES:
        return _TEMPLATES[signature.name]
    if signature.name[0].isalpha():
        return f"{signature.name}({', '.join(marks)})"
    return f"({marks[0]} {signature.name} {marks[1]})" if len(marks) == 2 else f"({signature.name} {marks[0]})"


def _sendable(signature: Signature) -> bool:
    """Has it arguments and a result that the wire carries, and one result everywhere?"""
    if signature.name in _LOCALE | _VOLATILE | _FAR:
        return False
    if signature.name in ("jsonb_set", "jsonb_insert") and len(signature.args) == 3:
        return False  # PostgreSQL adds the default of the last one
    if signature.name == "%" and len(set(signature.args)) > 1:
        return False  # PostgreSQL's % takes two of one type
    own = signature.name.startswith("kalam_") and signature.name not in LOCAL_NAMES
    if own or "interval" in (*signature.args, signature.result):
        return False  # not PostgreSQL's, or of the query engine's intervals
    return signature.supported and bool(signature.args) and {*signature.args, signature.result} - {"$1"} <= {
        *_REMOTE, *_KEPT, "text[]"}


def scalars() -> Iterator[CapabilityRow]:
    """Operators and functions, casts among them, that the query engine evaluates."""
    for each in SIGNATURES:
        if _sendable(each) and not each.aggregate and not each.window:
            kind = "function" if each.name[0].isalpha() else "operator"
            yield kind, LOCAL_NAMES.get(each.name, each.name), _args(each), _template(each), _flags(each)
    for kind, mark in product(("json", "jsonb"), ("", "_text")):
        operator = "#>>" if mark else "#>"
        yield "function", f"{kind}_extract_path{mark}", f"{kind},_text", f"($1 {operator} $2)", ""
    for name, template in _PATTERNS:
        yield "operator", name, "text,text", template, "d"
    for name, template in _ANY_CASE:
        yield "operator", name, "text,text", template, "a"
    for name, function in (("<<", "sub"), ("<<=", "subeq"), (">>", "sup"), (">>=", "supeq"), ("&&", "overlap")):
        yield "operator", name, "inet,inet", f"network_{function}($1, $2)", ""
    for name, template in _PATTERNS:
        yield "operator", name, "bpchar,text", template.replace("$1", "kalam_padded($1)"), "d"
    yield "operator", "-", "timestamp,timestamp", "kalam_elapsed($1, $2)", "from17"
    yield "operator", "-", "timestamp,timestamp", "kalam_elapsed_before_17($1, $2)", "before17"
    for name in sorted(_LOCALE):
        yield "function", name, "text", f"kalam_c_{name}($1)", "a"
    for name, pair in product(EQUALITY + ORDER, ("date,timestamp", "timestamp,date")):
        yield "operator", name, pair, f"($1 {name} $2)", ""
    for name, template, collation in _MATCHES:
        yield "operator", name, "text,text", template, f"{collation} u regex"
    yield "function", "regexp_like", "text,text", "kalam_matches($1, $2)", "d u regex"
    for name, args, template in _FOUND:
        yield "function", name, args, template, "d u regex1"
    for name, template in (("~~", "kalam_like($1, $2)"), ("!~~", "kalam_unlike($1, $2)")):
        yield "operator", name, "bytea,bytea", template, ""
    for name in EQUALITY:  # which asks the collation only whether strings are the same
        yield "operator", name, "jsonb,jsonb", f"($1 {name} $2)", ""
    for target in _OF_JSONB:
        yield "function", target, "jsonb", f"CAST($1 AS {_REMOTE[target]})", "before18"
        yield "function", target, "jsonb", f"CAST(kalam_json_known($1) AS {_REMOTE[target]})", "from18"
    for name in ("timestamp", "timestamptz"):
        yield "function", name, f"{name},int4", "kalam_rounded($1, $2)", ""
    for source, target in (("timestamptz", "timestamp"), ("timestamp", "timestamptz")):
        yield "function", "timezone", f"text,{source}", f"CAST($2 AS {target})", _UTC
    for name, target in (("extract", "extract_field"), ("date_part", "date_part")):
        yield "function", name, "text,timestamptz", f"{target}('epoch', CAST($2 AS timestamp))", "const1=epoch"
    for source, target in _CASTS:
        yield "function", target, source, f"CAST($1 AS {_REMOTE[target]})", ""


def variadic() -> Iterator[CapabilityRow]:
    """Of any number of values, of types with an output function in the table or of boolean."""
    yield "function", "concat", "any", "concat($*)", ""
    yield "function", "concat_ws", "text,any", "concat_ws($*)", ""


def conversions() -> Iterator[CapabilityRow]:
    """Casts by the output function of the one type and the input function of the other. Around what is read may be
    spaces, which are those of ASCII where the encoding is UTF8."""
    for name in _WRITTEN:
        yield "output", "text", name, "CAST($1 AS text)", ""
    for name in (*_READ, *_READ_ANEW):
        yield "input", name, "text", f"CAST($1 AS {_REMOTE[name]})", "u from16" if name in _READ_ANEW else "u"
    for name in _READ_ANEW:
        yield "input", name, "text", f"kalam_{name}_before_16($1)", "u before16"


# ---------- aggregates and windows ----------
#: whose result depends on the order of rows
_ORDERED = frozenset({"string_agg", "array_agg"})
#: whose last bits depend on the order of summation, as those of PostgreSQL's parallel plans do
ROUNDED = frozenset({"sum", "avg", "stddev", "stddev_samp", "stddev_pop", "variance", "var_samp", "var_pop",
                     *regression.NAMES})
FLOATS = frozenset({"float4", "float8"})


def _aggregate_flags(signature: Signature) -> str:
    if signature.name in _ORDERED:
        return "o"
    return "c" if signature.args[0] in ("text", "bpchar") and len(signature.args) == 1 else ""


#: PostgreSQL rounds a sum of real at each row, and has no least or greatest of these
_OTHERWISE = frozenset({("sum", "float4"), *product(("min", "max"), ("cidr", "bit", "varbit", "macaddr", "macaddr8"))})


def aggregates() -> Iterator[CapabilityRow]:
    yield "aggregate", "count", "", "count", ""
    yield "aggregate", "count", "any", "count", ""
    yield "aggregate", "array_agg", "anynonarray", "array_agg", "o"
    for each in SIGNATURES:
        if each.aggregate and _sendable(each) and (each.name, *each.args) not in _OTHERWISE:
            yield "aggregate", each.name, _args(each), each.name, _aggregate_flags(each)


def windows() -> Iterator[CapabilityRow]:
    for each in SIGNATURES:
        if each.window:
            element = "anycompatible" if each.args.count("any") == 2 else "anyelement"
            args = ",".join(element if name == "any" else name for name in each.args)
            yield "window", each.name, args, each.name, ""


def types() -> Iterator[CapabilityRow]:
    """Those with a form of their own, and (kind ``kept``) those that travel as text and are compared by PostgreSQL."""
    for name, layout, remote, flags in TYPES:
        yield "type", name, layout, remote, flags
    for each in kept.TYPES.values():
        if each.name != "embedding":  # which is no type of pg_catalog
            yield "kept", each.name, "utf8", each.remote, "key" if each.key is not None else ""
    for name in _WRITTEN_AS_EQUAL:
        yield "kept", name, "utf8", "text", "key"


def capabilities(server_id: str, node_id: int) -> list[CapabilityRow]:
    """All rows: facts about the server, then types, operators and functions."""
    facts = {"version": __version__, "protocol": "1", "server_id": server_id, "node_id": str(node_id),
             "grouping_sets": "true", "libm": libm.fingerprint()}
    return [*(("info", name, "", value, "") for name, value in facts.items()), *types(), *compared(), *comparisons(),
            *scalars(), *variadic(), *conversions(), *aggregates(), *windows()]
