"""A small MCP server over stdio, for `mcp_tools.py`: `pip install mcp`."""

from mcp.server import MCPServer

server = MCPServer("weather")


@server.tool()
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It snows in {city}, at -7 degrees."


server.run("stdio")
