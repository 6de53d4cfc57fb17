// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// policy.Parse is what decides; but encoding/json does not say where it found an
// unknown key or a wrong kind of value. checkShape looks for the same faults by
// the types' own tags, and knows the place.

type shapeError struct {
	offset int
	err    error
}

func checkShape(v *hujson.Value) *shapeError {
	return checkValue(v, reflect.TypeFor[policy.Document]())
}

func shapeErrorf(v *hujson.Value, format string, args ...any) *shapeError {
	return &shapeError{v.StartOffset, fmt.Errorf(format, args...)}
}

func checkValue(v *hujson.Value, t reflect.Type) *shapeError {
	if v.Value.Kind() == 'n' {
		return shapeErrorf(v, "null: leave the key out instead")
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](reflect.New(t)); ok {
		lit, isLit := v.Value.(hujson.Literal)
		if !isLit || v.Value.Kind() != '"' {
			return shapeErrorf(v, "want a text")
		}
		if err := u.UnmarshalText([]byte(lit.String())); err != nil {
			return shapeErrorf(v, "%w", err)
		}
		return nil
	}
	switch t.Kind() {
	case reflect.Struct:
		return checkObject(v, fieldTypes(t), nil)
	case reflect.Map:
		return checkObject(v, nil, t)
	case reflect.Slice:
		a, ok := v.Value.(*hujson.Array)
		if !ok {
			return shapeErrorf(v, "want a list in [ ]")
		}
		for i := range a.Elements {
			if err := checkValue(&a.Elements[i], t.Elem()); err != nil {
				return err
			}
		}
	case reflect.String:
		if v.Value.Kind() != '"' {
			return shapeErrorf(v, "want a text in \" \"")
		}
	default:
		lit, ok := v.Value.(hujson.Literal)
		if !ok || v.Value.Kind() != '0' || json.Unmarshal(lit, reflect.New(t).Interface()) != nil {
			return shapeErrorf(v, "want a whole number that is not negative and not too large")
		}
	}
	return nil
}

// checkObject checks members by the fields of a struct or by a map's types.
func checkObject(v *hujson.Value, fields map[string]reflect.Type, m reflect.Type) *shapeError {
	o, ok := v.Value.(*hujson.Object)
	if !ok {
		return shapeErrorf(v, "want an object in { }")
	}
	seen := map[string]bool{}
	for i := range o.Members {
		name, val := &o.Members[i].Name, &o.Members[i].Value
		lit, isText := name.Value.(hujson.Literal)
		if !isText {
			return shapeErrorf(name, "want a key in \" \"")
		}
		key := lit.String()
		if seen[key] {
			return shapeErrorf(name, "key %q is there twice", key)
		}
		seen[key] = true
		var t reflect.Type
		if m != nil {
			if err := checkValue(name, m.Key()); err != nil {
				return err
			}
			t = m.Elem()
		} else if t = fields[key]; t == nil {
			names := make([]string, 0, len(fields))
			for n := range fields {
				names = append(names, n)
			}
			slices.Sort(names)
			return shapeErrorf(name, "unknown key %q: want %s", key, strings.Join(names, ", "))
		}
		if err := checkValue(val, t); err != nil {
			return err
		}
	}
	return nil
}

// fieldTypes returns the types of a struct's fields by their keys.
func fieldTypes(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			out[name] = f.Type
		}
	}
	return out
}
