"""From folders of files to the table of scans."""
