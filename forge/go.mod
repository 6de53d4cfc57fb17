module github.com/bauxite-mesh/bauxite/forge

go 1.26.0
