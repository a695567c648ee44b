"""What the service answers with."""

from datetime import datetime

from pydantic import BaseModel


class Visit(BaseModel):
    """One row of the table `visits`."""

    id: int
    timestamp: datetime
