"""The plant's database: what it is made of, and who may do what in it.

Every station's chain is kept row by row as it was hashed. A row that does not continue its
station's chain is refused by the database itself, whoever sends it; nothing of a chain is ever
changed. Steps are numbered and only add, so that an older shipper goes on after a newer `create`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, inspect, text
from sqlalchemy.schema import CreateColumn

from station.tables import DEFECT, HOURLY, PLATE

DERIVED = (PLATE, DEFECT, HOURLY)
SHIPPER, VIEWER, QA = "vqi_shipper", "vqi_viewer", "vqi_qa"
TRIGGERS = {"row_arrived", "row_stays", "row_stays_whole"}
BROKEN_CHAIN = "VQ001"
"""SQLSTATE of a row that does not continue its chain."""
_OF_STATIONS = ("row", "plate", "defect", "hourly", "picture_position")
_CREATE_LOCK = 0x765149

_ROWS = """
CREATE TABLE row (
    station_id text NOT NULL,
    seq bigint NOT NULL CHECK (seq > 0),
    kind text NOT NULL,
    body text NOT NULL,
    body_sha256 text NOT NULL,
    chain_sha256 text NOT NULL,
    arrived_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (station_id, seq)
);
DO $$ BEGIN
    ALTER TABLE row ALTER COLUMN body SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN NULL;
END $$;
CREATE TABLE picture_position (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    station_id text NOT NULL,
    seq bigint NOT NULL,
    arrived_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX picture_position_station ON picture_position (station_id, id);
-- A review looks for its plate by both; without statistics another index seems as good.
DROP INDEX plate_result;
CREATE INDEX plate_result ON plate (result_id, station_id);
"""
"""`arrived_at` is the database's own time and cannot be given: each row is an anchor. The newest
`picture_position` of a station says up to which row its pictures are there."""

_STAYS = """
CREATE FUNCTION row_stays() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'the log is append-only';
END $$;
CREATE TRIGGER row_stays BEFORE UPDATE OR DELETE ON row
    FOR EACH ROW EXECUTE FUNCTION row_stays();
CREATE TRIGGER row_stays_whole BEFORE TRUNCATE ON row
    FOR EACH STATEMENT EXECUTE FUNCTION row_stays();
"""

_ROLES = """
DO $$ DECLARE name text; BEGIN
    FOREACH name IN ARRAY ARRAY['vqi_shipper', 'vqi_viewer', 'vqi_qa'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END $$;
CREATE TABLE station_role (
    role_name text NOT NULL,
    station_id text NOT NULL,
    duty text NOT NULL CHECK (duty IN ('shipper', 'viewer')),
    PRIMARY KEY (role_name, station_id, duty)
);
ALTER TABLE station_role ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON station_role FOR SELECT USING (role_name = current_user);
GRANT SELECT ON station_role, plant_step TO vqi_shipper, vqi_viewer, vqi_qa;
GRANT SELECT ON row, plate, defect, hourly, picture_position TO vqi_shipper, vqi_viewer, vqi_qa;
GRANT INSERT (station_id, seq, kind, body, body_sha256, chain_sha256) ON row TO vqi_shipper;
GRANT INSERT (station_id, seq) ON picture_position TO vqi_shipper;
GRANT INSERT ON plate, defect, hourly TO vqi_shipper;
GRANT UPDATE (reviewed_verdict, reviewer, review_seq) ON plate TO vqi_shipper;
GRANT UPDATE (kind) ON defect TO vqi_shipper;
GRANT UPDATE (plates, defects) ON hourly TO vqi_shipper;
"""

_OWN = "station_id IN (SELECT station_id FROM station_role WHERE role_name = current_user"
_SENT = f"{_OWN} AND duty = 'shipper')"
_POLICIES = "".join(
    f"""
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
CREATE POLICY qa ON {table} FOR SELECT TO vqi_qa USING (true);
CREATE POLICY seen ON {table} FOR SELECT TO vqi_shipper, vqi_viewer USING ({_OWN}));
CREATE POLICY sent ON {table} FOR INSERT TO vqi_shipper WITH CHECK ({_SENT});
"""
    for table in _OF_STATIONS
) + "".join(
    f"CREATE POLICY made ON {table} FOR UPDATE TO vqi_shipper USING ({_SENT});\n"
    for table in ("plate", "defect", "hourly")
)

_ARRIVES = """
CREATE OR REPLACE FUNCTION @schema@.row_arrived() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE wrong record;
BEGIN
    SELECT link.station_id, link.seq INTO wrong FROM (
        SELECT n.station_id, n.seq, n.kind, n.body_sha256, n.chain_sha256,
            CASE WHEN lag(n.seq) OVER chain = n.seq - 1 THEN lag(n.chain_sha256) OVER chain
                 WHEN n.seq = 1 THEN repeat('0', 64)
                 ELSE (SELECT before.chain_sha256 FROM @schema@.row AS before
                       WHERE before.station_id = n.station_id AND before.seq = n.seq - 1)
            END AS before
        FROM arrived AS n WINDOW chain AS (PARTITION BY n.station_id ORDER BY n.seq)
    ) AS link
    WHERE link.before IS NULL OR link.chain_sha256 <> encode(sha256(
        convert_to(concat_ws(' ', link.before, link.seq, link.kind, link.body_sha256), 'UTF8')
    ), 'hex')
    UNION ALL
    SELECT n.station_id, n.seq FROM arrived AS n
    WHERE n.body_sha256 <> encode(sha256(convert_to(n.body, 'UTF8')), 'hex')
    ORDER BY 1, 2 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'row % of station % does not continue its chain', wrong.seq,
            wrong.station_id USING ERRCODE = 'VQ001';
    END IF;
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS row_arrived ON @schema@.row;
CREATE TRIGGER row_arrived AFTER INSERT ON @schema@.row REFERENCING NEW TABLE AS arrived
    FOR EACH STATEMENT EXECUTE FUNCTION @schema@.row_arrived();
REVOKE CREATE ON SCHEMA @schema@ FROM PUBLIC;
"""
"""It runs with the owner's rights: a shipper's temporary table named as one of ours, or a function
of its own, must not be found before them. Replaces what step 2 once made."""

_REVIEWS = "CREATE INDEX row_review ON @schema@.row (station_id, seq) WHERE kind = 'review'"

_STEPS = (_ROWS, _STAYS, _ROLES, _POLICIES, _ARRIVES, _REVIEWS)
"""Numbered from 1."""


class UnfitDatabase(Exception):
    """This database would answer otherwise than a station's file; says what would be right."""


def create(connection: Connection) -> list[int]:
    """Bring the database up to this program, all or nothing, in the caller's transaction; the
    numbers of the steps that it lacked. Raises `UnfitDatabase`."""
    _refuse_unfit(connection)
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATE_LOCK})
    connection.execute(
        text("CREATE TABLE IF NOT EXISTS plant_step (number integer PRIMARY KEY, applied_at "
             "timestamptz NOT NULL DEFAULT now())")
    )  # fmt: skip
    for table in DERIVED:
        table.create(connection, checkfirst=True)
        _add_columns(connection, table)
    lacking = lacking_steps(connection)
    cursor: Any = connection.connection.cursor()
    schema = connection.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    for number in lacking:
        # The driver itself: it alone takes several statements at once.
        cursor.execute(_STEPS[number - 1].replace("@schema@", schema))
        connection.execute(text("INSERT INTO plant_step VALUES (:number)"), {"number": number})
    return lacking


def lacking_steps(connection: Connection) -> list[int]:
    """Numbers of the steps that this program knows and the database has not seen."""
    known = set(connection.execute(text("SELECT number FROM plant_step")).scalars())
    return [number for number in range(1, len(_STEPS) + 1) if number not in known]


def _refuse_unfit(connection: Connection) -> None:
    found = connection.execute(
        text("SELECT pg_encoding_to_char(encoding) AS encoding, datcollate FROM pg_database "
             "WHERE datname = current_database()")
    ).one()  # fmt: skip
    if found.encoding != "UTF8" or found.datcollate not in ("C", "POSIX", "C.UTF-8", "C.utf8"):
        raise UnfitDatabase(
            f"its encoding is {found.encoding} and it sorts by {found.datcollate}: times and "
            "serials must sort as in a station's file; make it with: "
            "createdb --template=template0 --encoding=UTF8 --locale=C.UTF-8 NAME"
        )


def _add_columns(connection: Connection, table: Table) -> None:
    """Columns that a newer program knows; what older rows say in them, `rebuild` fills in."""
    known = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in known:
            wanted = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {wanted}")


def grant(connection: Connection, role: str, duty: str, station_ids: list[str]) -> None:
    """Let a login role that exists ship a station, view stations, or (`qa`) view all."""
    group = {"shipper": SHIPPER, "viewer": VIEWER, "qa": QA}[duty]
    quoted = connection.dialect.identifier_preparer.quote_identifier(role)
    connection.exec_driver_sql(f"GRANT {group} TO {quoted}")
    for station_id in station_ids:
        connection.execute(
            text("INSERT INTO station_role VALUES (:role, :station, :duty) ON CONFLICT DO NOTHING"),
            {"role": role, "station": station_id, "duty": duty},
        )
