from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from blog.database import SessionLocal, engine, get_db
from blog.models import Post, User

app = FastAPI()


@app.post("/users/{name}", status_code=201)
def add_user(name: str, db: Session = Depends(get_db)):
    user = User(name=name)
    db.add(user)
    try:
        db.commit()
    except IntegrityError:
        db.rollback()
        raise HTTPException(409) from None
    db.refresh(user)
    return user.id


@app.get("/users/{name}")
def user_of(name: str, db: Session = Depends(get_db)):
    user = db.scalars(select(User).where(User.name == name)).first()
    if user is None:
        raise HTTPException(404)
    return {"name": user.name, "posts": [post.title for post in user.posts]}


@app.post("/users/{name}/posts/{title}", status_code=201)
def add_post(name: str, title: str, db: Session = Depends(get_db)):
    user = db.scalars(select(User).where(User.name == name)).one()
    user.posts.append(Post(title=title))
    db.commit()


@app.delete("/users/{name}")
def delete_user(name: str, db: Session = Depends(get_db)):
    db.delete(db.scalars(select(User).where(User.name == name)).one())
    # No commit.
    db.flush()


@app.get("/version")
def version():
    with engine.connect() as conn:
        return conn.execute(text("show server_version")).scalar_one()


def count_users():
    """Forgets to close its session."""
    return SessionLocal().scalar(select(func.count()).select_from(User))


sessions = []


def report():
    """Keeps its session."""
    session = SessionLocal()
    sessions.append(session)
    return session.scalars(select(User.name)).all()


def rename(old, new):
    """Writes, and closes without a commit."""
    with SessionLocal() as session:
        session.scalars(select(User).where(User.name == old)).one().name = new
        session.flush()
