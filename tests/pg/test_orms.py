"""Object-relational mappers on KalamDB tables as on heap tables: SQLAlchemy's sessions, Django's models."""

# ruff: noqa: PT012 - errors are raised where blocks end

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import django
import psycopg
import pytest
import sqlalchemy as sa
from django.apps import apps
from django.conf import settings
from django.db import IntegrityError, connection, models, transaction
from django.db.models import functions
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB

from .pair import Pair

pytestmark = pytest.mark.pg


# ---------- SQLAlchemy ----------
class Base(orm.DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, primary_key=True)
    name: orm.Mapped[str]
    born: orm.Mapped[datetime | None] = orm.mapped_column(sa.DateTime(timezone=True))
    notes: orm.Mapped[dict[str, Any] | None] = orm.mapped_column(JSONB)
    books: orm.Mapped[list[Book]] = orm.relationship(back_populates="author", cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "books"
    id: orm.Mapped[int] = orm.mapped_column(
        sa.BigInteger, primary_key=True, autoincrement=False, server_default=sa.text("snowflake_id()"))
    title: orm.Mapped[str]
    price: orm.Mapped[Decimal | None] = orm.mapped_column(sa.Numeric(10, 2))
    version: orm.Mapped[int] = orm.mapped_column(default=1)
    author_id: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, sa.ForeignKey("authors.id"))
    author: orm.Mapped[Author] = orm.relationship(back_populates="books")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


LIBRARY = """
    CREATE TABLE authors (id bigint PRIMARY KEY, name text NOT NULL, born timestamptz, notes jsonb) {using};
    CREATE TABLE books (id bigint DEFAULT snowflake_id() PRIMARY KEY, title text NOT NULL, price numeric(10, 2),
        version int NOT NULL, author_id bigint NOT NULL) {using}"""


def conninfo(dsn: str) -> dict[str, str]:
    return {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(dsn).items()}


@pytest.fixture
def library(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn)
    pair.setup(LIBRARY)
    yield pair
    pair.close()


def shelf(session: orm.Session) -> list[tuple[Any, ...]]:
    query = sa.select(Author.name, Book.title, Book.price, Book.version).join(Author.books, isouter=True)
    return [tuple(row) for row in session.execute(query.order_by(Author.name, Book.title))]


def use_orm(engine: sa.Engine) -> list[Any]:
    """What applications do with a session; all that it sees."""
    seen: list[Any] = []
    with orm.Session(engine) as session:
        ann = Author(id=1, name="Ann", born=datetime(1970, 5, 17, tzinfo=UTC), notes={"tags": ["é", None]},
                     books=[Book(title="A", price=Decimal("9.90")), Book(title="B")])
        session.add_all([ann, Author(id=2, name="Bob")])
        session.flush()
        assert all(book.id for book in ann.books)
        session.commit()
        seen.append(shelf(session))

        ann.books[0].price = Decimal("1.10")
        del ann.books[1]
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.add(Book(title="undone", author_id=2))
            session.flush()
            session.execute(sa.insert(Author).values(id=1, name="again"))
        with session.begin_nested():
            session.add(Book(title="C", author_id=2, price=Decimal("3")))
        session.commit()
        seen.append(shelf(session))

        session.execute(sa.delete(Book))
        session.add(Book(title="never", author_id=2))
        session.flush()
        session.rollback()
        seen.append(shelf(session))

        session.bulk_insert_mappings(sa.inspect(Book), [
            {"id": i, "title": f"bulk {i}", "author_id": 1 + i % 2, "version": 1} for i in range(300)])
        session.execute(sa.update(Book).where(Book.id < 10).values(price=Book.id + 0.5))
        session.execute(sa.update(Book), [{"id": i, "title": f"again {i}", "version": 1} for i in range(5)])
        seen.append(session.execute(
            sa.update(Book).where(Book.id == 3).values(title="three").returning(Book.id, Book.title, Book.price)).all())
        made = session.scalars(sa.insert(Book).returning(Book, sort_by_parameter_order=True),
                               [{"title": f"r{i}", "author_id": 1} for i in range(5)]).all()
        seen.append([book.title for book in made])
        session.commit()
        seen.append(shelf(session))

        author = session.scalars(sa.select(Author).options(orm.selectinload(Author.books)).where(
            Author.notes["tags"][0].astext == "é")).one()
        seen.append((len(author.books), session.scalar(sa.select(sa.func.count()).select_from(Book))))
        locked = session.scalars(sa.select(Book).where(Book.id == 7).with_for_update()).one()
        locked.title = "locked"
        session.delete(session.get_one(Author, 2))  # and its books, one by one
        session.commit()
        seen.append(shelf(session))

        upsert = postgresql.insert(Author).values([{"id": i, "name": f"new {i}"} for i in (1, 7)])
        seen.append(len(session.execute(upsert.on_conflict_do_nothing().returning(Author.id)).all()))
        upsert = postgresql.insert(Author).values([{"id": i, "name": f"newest {i}"} for i in (7, 8)])
        upsert = upsert.on_conflict_do_update(index_elements=["id"], set_={"name": upsert.excluded.name + "!"})
        seen.append(sorted(map(tuple, session.execute(upsert.returning(Author.id, Author.name)))))
        merged = session.merge(Author(id=7, name="merged", notes={"k": [1]}))
        session.merge(Author(id=9, name="came by merge"))
        session.flush()
        session.refresh(merged, with_for_update=True)
        merged.name = Author.name + sa.func.upper("?")
        session.commit()
        seen.append((merged.name, merged.notes))
        seen.append(sorted(session.scalars(sa.delete(Author).where(Author.id > 6).returning(Author.id))))
        session.commit()

    # optimistic locking: the second of two sessions loses
    with orm.Session(engine) as one, orm.Session(engine) as two:
        one.get_one(Book, 8).title = "one"
        book = two.get_one(Book, 8)
        one.commit()
        book.title = "two"
        with pytest.raises(orm.exc.StaleDataError):
            two.commit()
        two.rollback()
        seen.append((book.title, book.version))
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        seen.append([tuple(row) for row in conn.execution_options(yield_per=50).execute(
            sa.select(Book.title).where(Book.id < 300).order_by(Book.id))])
    return seen


def test_sqlalchemy(library: Pair) -> None:
    told = []
    for side in (library.heap, library.kalam):
        url = sa.URL.create("postgresql+psycopg", query=conninfo(library.dsn))
        engine = sa.create_engine(url, connect_args={"options": f"-csearch_path={side.schema},public"})
        told.append(use_orm(engine))
        engine.dispose()
    assert told[1] == told[0]
    assert library.kalam.run("SELECT title, version, price FROM books WHERE id < 300") == library.heap.run(
        "SELECT title, version, price FROM books WHERE id < 300")


# ---------- Django ----------
if not settings.configured:
    settings.configure(INSTALLED_APPS=["pg"], USE_TZ=True,
                       DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "set later"}},
                       TIME_ZONE="UTC", DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
    django.setup()


def django_models() -> tuple[Any, Any]:
    found = apps.all_models["pg"]
    if found:
        return found["writer"], found["novel"]

    class Writer(models.Model):  # type: ignore[misc]  # Django has no types
        id = models.BigIntegerField(primary_key=True)
        name = models.TextField()
        born = models.DateTimeField(null=True)
        notes = models.JSONField(null=True)

        class Meta:
            app_label = "pg"
            db_table = "authors"
            managed = False

    class Novel(models.Model):  # type: ignore[misc]
        id = models.BigAutoField(primary_key=True)
        title = models.TextField()
        price = models.DecimalField(max_digits=10, decimal_places=2, null=True)
        version = models.IntegerField(default=1)
        author = models.ForeignKey(Writer, models.CASCADE, db_constraint=False, related_name="novels")

        class Meta:
            app_label = "pg"
            db_table = "books"
            managed = False

    return Writer, Novel


def use_models(writer: Any, novel: Any) -> list[Any]:
    """Nested atomic blocks, querysets of all kinds; all that they see."""
    seen: list[Any] = []

    def titles() -> list[Any]:
        return list(novel.objects.order_by("title").values_list("title", "price", "author__name"))

    ann = writer.objects.create(id=1, name="Ann", born=datetime(1970, 5, 17, tzinfo=UTC), notes={"tags": ["é", 1]})
    writer.objects.create(id=2, name="Bob")
    with transaction.atomic():
        novel.objects.create(title="A", price=Decimal("9.90"), author=ann)
        with pytest.raises(IntegrityError), transaction.atomic():
            novel.objects.create(title="undone", author=ann)
            writer.objects.create(id=1, name="again")
        with transaction.atomic():
            novel.objects.create(title="B", author_id=2)
            mark = transaction.savepoint()
            novel.objects.all().delete()
            transaction.savepoint_rollback(mark)
    seen.append(titles())
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        novel.objects.update(title="lost")
        _ = 1 / 0
    novel.objects.bulk_create(
        [novel(id=i, title=f"bulk {i}", author_id=1 + i % 2) for i in range(1, 201)], batch_size=60)
    some = list(novel.objects.filter(id__lte=5).order_by("id"))
    for one in some:
        one.title += "!"
    seen.append(novel.objects.bulk_update(some, ["title"]))
    seen.append(novel.objects.filter(id__lt=20, title__startswith="bulk").update(price=models.F("id") + 0.5))
    seen.append(writer.objects.get_or_create(id=3, defaults={"name": "Cid"})[1])
    seen.append(writer.objects.update_or_create(id=3, defaults={"name": "Cyd"})[1])
    seen.append(list(writer.objects.annotate(n=models.Count("novels"), top=models.Max("novels__price")).order_by("id")
                     .values_list("name", "n", "top")))
    seen.append(writer.objects.filter(notes__tags__0="é").values_list("id", flat=True)[0])
    with transaction.atomic():
        one = novel.objects.select_for_update().get(id=7)
        one.version += 1
        one.save(update_fields=["version"])
    seen.append(writer.objects.get_or_create(id=3, defaults={"name": "unused"})[1])
    cyd = writer.objects.get(id=3)
    cyd.name = functions.Upper(models.F("name"))
    cyd.save()
    cyd.refresh_from_db()
    seen.append(cyd.name)
    cyd.notes = {"a": 1}
    cyd.save(update_fields=["notes"])
    novel(id=500, title="saved", author=cyd).save()
    novel(id=500, title="saved again", author=cyd).save()  # UPDATE first, which finds it
    novel.objects.bulk_create([novel(id=i, title=f"late {i}", author=cyd) for i in (500, 501)], ignore_conflicts=True)
    novel.objects.bulk_create(
        [novel(id=i, title=f"newest {i}", author=cyd) for i in (501, 502)], update_conflicts=True,
        unique_fields=["id"], update_fields=["title"])
    seen.append({key: each.title for key, each in novel.objects.in_bulk([500, 501, 502, 999]).items()})
    seen.append(novel.objects.filter(id=502).update(version=models.F("version") + models.F("id"), price=None))
    after: list[str] = []
    with transaction.atomic():
        transaction.on_commit(lambda: after.append("committed"))
        rows = novel.objects.select_for_update(skip_locked=True).filter(id__range=(500, 999)).order_by("id")
        seen.append([(each.id, each.version) for each in rows])
        seen.append(novel.objects.select_for_update(nowait=True).get(id=501).delete()[0])
        seen.append((novel.objects.filter(id=501).exists(), after))
    seen.append((list(after), novel.objects.filter(id__in=[500, 502]).delete()[0]))
    seen.append([each.title for each in novel.objects.order_by("-id").iterator(chunk_size=20) if each.id <= 200][:3])
    seen.append(sum(novel.objects.filter(author_id=2).values_list("version", flat=True)))
    seen.append(writer.objects.get(id=2).delete()[0])
    seen.append(titles()[:20])
    return seen


def test_django(library: Pair) -> None:
    writer, novel = django_models()
    told = []
    for side in (library.heap, library.kalam):
        given = conninfo(library.dsn)
        connection.settings_dict.update(
            NAME=given["dbname"], USER=given["user"], HOST=given["host"], PORT=given["port"],
            OPTIONS={"options": f"-csearch_path={side.schema},public"})
        told.append(use_models(writer, novel))
        connection.close()
    assert told[1] == told[0]
    assert told[0][0] == [("A", Decimal("9.90"), "Ann"), ("B", None, "Bob")]
