module quire.test/cluster/node-tools

go 1.24
