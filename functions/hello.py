"""Hello: the smallest functions there are. Start here.

Try it:   headrace dev functions/
          curl 'localhost:8080/hello/Ada?shout=true'
          curl localhost:8080/hello -H 'content-type: application/json' -d '{"names": ["Ada", "Alan"]}'
          headrace invoke hello.add --payload '{"a": 2, "b": 3}'
"""

from typing import Annotated

from pydantic import BaseModel, Field

from headrace import App, Http

app = App("hello")


# A parameter takes its value from the path if its name is there, else from the query (?shout=true). Its
# annotation is its type: `shout=maybe` is answered with status 422 and the name of the field.
@app.on(Http("GET", "/hello/{name}"))
@app.function()
def greet(name: str, shout: bool = False) -> dict[str, str]:
    """Greet one person."""
    greeting = f"Hello, {name}!"
    return {"greeting": greeting.upper() if shout else greeting}


class Guests(BaseModel):
    names: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(min_length=1, max_length=1000)


# The parameter `body` is the request's body, checked against its model.
@app.on(Http("POST", "/hello"))
@app.function(timeout=5)
def greet_all(body: Guests) -> dict[str, list[str]]:
    """Greet many people."""
    return {"greetings": [f"Hello, {name}!" for name in body.names]}


# A function needs no trigger: this one is called by name, from a shell, over HTTP or by `Client().invoke`.
@app.function(timeout=5)
def add(a: float, b: float) -> float:
    """Add two numbers."""
    return a + b
