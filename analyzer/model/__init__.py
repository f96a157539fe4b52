"""The shadow MMU: what takes events and leaves a journal and an outcome. It knows no file, no database, no command line."""
