"""The commands, a file for each group of them. One function for each: arguments -> call -> print, nothing else.

Always true
  - A file is imported when one of its commands is asked for (cli/group.py says where each stands), and what a command
    needs is imported inside it: `flowkin query_similar` loads click, msgspec and ipc, no more.
  - The order of the functions is that of a day.
"""
