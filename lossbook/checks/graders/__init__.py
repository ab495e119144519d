"""The graded exercises, one module a chapter, named like the chapter."""
