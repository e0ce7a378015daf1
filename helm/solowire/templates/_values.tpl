{{/* Values that look well to the schema, and that the API server, the kubelet or the process itself would not take. */}}

{{- define "solowire.checkValues" -}}
{{- include "solowire.checkNames" . -}}
{{- include "solowire.checkTexts" . -}}
{{- include "solowire.checkQuantities" . -}}
{{- include "solowire.checkEnvironments" . -}}
{{- include "solowire.checkSources" . -}}
{{- if eq (dig "runAsUser" "" .Values.podSecurityContext | toString) "0" -}}
{{- fail "podSecurityContext.runAsUser: 0 is root, as which no pod here starts; null leaves it to the platform" -}}
{{- end -}}
{{- end -}}

{{/* All names begin with that of the release; a Service's begins with a letter. */}}
{{- define "solowire.checkNames" -}}
{{- $name := include "solowire.fullname" . -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $name) -}}
{{- if .Values.fullnameOverride -}}
{{- fail (printf "fullnameOverride: %s: it has to begin with a small letter, and may hold small letters, digits and -" .Values.fullnameOverride) -}}
{{- else if regexMatch "^[a-z]" .Release.Name -}}
{{- fail (printf "nameOverride: %s: it may hold small letters, digits and -" .Values.nameOverride) -}}
{{- else -}}
{{- fail (printf "the release's name %s: names of Services begin with a letter; choose another one, or set fullnameOverride" .Release.Name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Files that stand in values as texts: a pod could not start on them. */}}
{{- define "solowire.checkTexts" -}}
{{- range $value, $text := dict "roles" .Values.roles "eventTypes" .Values.eventTypes -}}
{{- with get (fromToml $text) "Error" -}}
{{- fail (printf "%s: this is no TOML: %s" $value .) -}}
{{- end -}}
{{- end -}}
{{- $tracing := .Values.tracing -}}
{{- if and $tracing.endpoint (hasSuffix "traceidratio" $tracing.sampler) -}}
{{- if not (regexMatch "^(0?[.][0-9]+|[01]|0[.]|1[.]0*)$" $tracing.samplerArg) -}}
{{- fail (printf "tracing.samplerArg: %s is no part of 1, such as 0.01 for one in a hundred" $tracing.samplerArg) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* 1280m is a bit more than one byte, and no pod starts with it. */}}
{{- define "solowire.checkQuantities" -}}
{{- $holders := dict "router" .Values.router "gateway" .Values.gateway "shard" .Values.shard "edge" .Values.edge -}}
{{- range $name, $source := .Values.sources -}}
{{- $_ := set $holders (print "sources." $name) $source -}}
{{- end -}}
{{- range $holder, $values := $holders -}}
{{- range $kind := list "requests" "limits" -}}
{{- $memory := dig "resources" $kind "memory" "" $values | toString -}}
{{- if and $memory (not (regexMatch "^[0-9.]+([kMGTPE]|[KMGTPE]i|[eE][+]?[0-9]+)?$" $memory)) -}}
{{- fail (printf "%s.resources.%s.memory: %s is no amount of memory, such as 768Mi or 1Gi" $holder $kind $memory) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Of a variable that is there twice the API server takes one, or neither. */}}
{{- define "solowire.checkEnvironments" -}}
{{- range $role := list "router" "gateway" "shard" -}}
{{- $values := get $.Values $role -}}
{{- $about := dict "root" $ "role" $role "values" (dict "extraEnv" list) -}}
{{- $set := concat (include "solowire.env" $about | fromYamlArray) (include "solowire.apiEnv" $about | fromYamlArray) -}}
{{- $own := dict "router" "SOLOWIRE_BACKPLANE_BIND" "gateway" "SOLOWIRE_PORT" "shard" "SOLOWIRE_SHARD__PORT" -}}
{{- include "solowire.checkTwice" (dict "holder" $role "extra" $values.extraEnv "set" (append $set (dict "name" (get $own $role)))) -}}
{{- end -}}
{{- range $name, $source := .Values.sources -}}
{{- $set := include "solowire.apiEnv" (dict "root" $) | fromYamlArray -}}
{{- range list "SOLOWIRE_URL" "SOLOWIRE_TOKEN_FILE" "SOLOWIRE_SOURCE__STATE_DIR" -}}
{{- $set = append $set (dict "name" .) -}}
{{- end -}}
{{- include "solowire.checkTwice" (dict "holder" (print "sources." $name) "extra" $source.extraEnv "set" $set) -}}
{{- end -}}
{{- end -}}

{{/* Takes a dict: holder, extra (extraEnv of a pod), set (the variables that the chart sets). */}}
{{- define "solowire.checkTwice" -}}
{{- $names := dict -}}
{{- range .set -}}{{- $_ := set $names .name "the chart sets" -}}{{- end -}}
{{- range .extra -}}
{{- if hasKey $names .name -}}
{{- fail (printf "%s.extraEnv: %s %s: leave it out here" $.holder (get $names .name) .name) -}}
{{- end -}}
{{- $_ := set $names .name "it has twice" -}}
{{- end -}}
{{- end -}}

{{- define "solowire.checkSources" -}}
{{- range $name, $source := .Values.sources -}}
{{- if gt (len $name) 15 -}}
{{- fail (printf "sources.%s: its name is longer than 15 characters" $name) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" $name) -}}
{{- fail (printf "sources.%s: its name may hold small letters, digits and - between them" $name) -}}
{{- end -}}
{{- with $source.notifyPort -}}
{{- $listens := dig "settings" "zones" "notify" "" $source | toString -}}
{{- if and (not (hasSuffix (printf "#%d" (int64 .)) $listens)) (not (has "--notify" $source.command)) -}}
{{- fail (printf "sources.%s.notifyPort: nothing listens there: set settings.zones.notify to 0.0.0.0#%d" $name (int64 .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
