"""The command line: `main` finds the command, `arguments` reads its settings, a module runs it."""
