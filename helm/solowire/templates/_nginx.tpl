{{/*
The edge's configuration. It asks the gateway (GET /v1/route) whose socket it is, and passes it to the shard's pod that
the answer names, if that is one. tests/e2e/test_edge_nginx.py runs it with Debian's nginx.
*/}}

{{- define "solowire.nginxConf" -}}
{{- $values := .Values -}}
{{- $ownsTls := and $values.tls.enabled (eq $values.expose.type "loadBalancer") -}}
{{- $usesProxyProtocol := and (eq $values.expose.type "loadBalancer") $values.expose.loadBalancer.proxyProtocol -}}
{{- $gateway := include "solowire.name" (dict "root" . "role" "gateway") -}}
# Made by the chart. Each WebSocket goes to the shard that owns its user; all else goes to the gateways.
daemon off;
pid /tmp/nginx.pid;
error_log /dev/stderr {{ $values.edge.errorLogLevel }};
worker_processes {{ $values.edge.workers }};
worker_rlimit_nofile {{ add 1000 (int64 $values.edge.workerConnections) }};
# How long the sockets of a pod that ends, or of an older configuration, go on.
worker_shutdown_timeout {{ int $values.edge.drainSeconds }}s;

events {
    worker_connections {{ int64 $values.edge.workerConnections }};
}

http {
    server_tokens off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    {{- if $values.edge.accessLog }}
    # Without the query, which may hold a token or a ticket.
    log_format json escape=json '{"time":"$time_iso8601","address":"$remote_addr","method":"$request_method","path":"$uri",'
        '"status":$status,"seconds":$request_time,"bytes":$bytes_sent,"shard":"$route_shard"}';
    access_log /dev/stdout json;
    {{- else }}
    access_log off;
    {{- end }}

    # The client's address: of who comes, or what a proxy that is believed says.
    {{- if $usesProxyProtocol }}
    real_ip_header proxy_protocol;
    set_real_ip_from 0.0.0.0/0;
    set_real_ip_from ::/0;
    {{- else if $values.edge.trustedProxies }}
    real_ip_header X-Forwarded-For;
    real_ip_recursive on;
    {{- range $values.edge.trustedProxies }}
    set_real_ip_from {{ . }};
    {{- end }}
    {{- else if has $values.expose.type (list "ingress" "httpRoute") }}
    real_ip_header X-Forwarded-For;
    {{- range $values.network.podNetworks }}
    set_real_ip_from {{ . }};
    {{- end }}
    {{- end }}

    # Where a socket may be passed to: the port of shards, on a pod. Any other answer of a gateway is refused.
    map $route_upstream $route_host {
        default "";
        "~^\[?(?<shard_host>[0-9a-f.:]+)\]?:8001$" $shard_host;
    }
    geo $route_host $is_pod {
        default 0;
        {{- range $values.network.podNetworks }}
        {{ . }} 1;
        {{- end }}
    }
    map $is_pod $shard {
        1 $route_upstream;
        default "";
    }

    # What a client is told that is not let in. auth_request knows 401 and 403; all else it makes a 500.
    map $route_status $default_retry {
        401 "";
        403 "";
        default 1;
    }
    map $route_retry $retry_after {
        default $route_retry;
        "" $default_retry;
    }
    map $route_status $default_code {
        204 upstream_refused;
        default gateway_unavailable;
    }
    map $route_code $refusal_code {
        default $route_code;
        "" $default_code;
    }

    # Twice, so that who finds no gateway behind the Service's address tries once more.
    upstream gateway {
        server {{ $gateway }}:8000 max_fails=0;
        server {{ $gateway }}:8000 max_fails=0;
        keepalive 64;
    }

    {{- if $ownsTls }}

    # A variable, so that nginx reads the files at each handshake: a renewed certificate needs no reload.
    map $ssl_server_name $certificates {
        default /etc/solowire-tls;
    }
    {{- end }}

    # For probes alone.
    server {
        listen 8081;
        {{- if $values.network.ipv6 }}
        listen [::]:8081;
        {{- end }}
        location = /healthz {
            default_type text/plain;
            return 200 "ok\n";
        }
        location / {
            return 404;
        }
    }

    server {
        listen 8080 backlog=4096 so_keepalive=60s:15s:4{{ if $usesProxyProtocol }} proxy_protocol{{ end }};
        {{- if $values.network.ipv6 }}
        listen [::]:8080 backlog=4096 so_keepalive=60s:15s:4{{ if $usesProxyProtocol }} proxy_protocol{{ end }};
        {{- end }}
        {{- if $ownsTls }}
        listen 8443 ssl backlog=4096 so_keepalive=60s:15s:4{{ if $usesProxyProtocol }} proxy_protocol{{ end }};
        {{- if $values.network.ipv6 }}
        listen [::]:8443 ssl backlog=4096 so_keepalive=60s:15s:4{{ if $usesProxyProtocol }} proxy_protocol{{ end }};
        {{- end }}
        ssl_certificate $certificates/tls.crt;
        ssl_certificate_key $certificates/tls.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:10m;
        ssl_session_tickets off;
        if ($scheme = http) {
            return 308 https://$host$request_uri;
        }
        {{- end }}

        # Bodies pass as they come: the gateway says which are too large or too slow, and nothing is put on the pod's disk.
        client_max_body_size 0;
        proxy_request_buffering off;
        proxy_max_temp_file_size 0;
        client_header_timeout 10s;
        # A ticket may be 16 KB long: it names all scopes of its user.
        large_client_header_buffers 4 20k;
        keepalive_timeout 65s;

        proxy_http_version 1.1;
        proxy_connect_timeout 2s;
        error_page 502 504 = @away;

        # What /v1/connect hands out. Who is silent for so long, three heartbeats, has gone.
        location ~ ^/s/\d+/ws$ {
            set $shard_path /ws;
            {{- include "solowire.nginxSocket" (dict "root" . "idle" (include "solowire.idleSeconds" . | printf "%ss")) | nindent 12 }}
        }
        # For old frontends, and for who has a token alone. Nothing is asked of an old one that is silent: the shard judges
        # a new one, TCP an old one.
        location = /ws {
            set $shard_path /ws;
            {{- include "solowire.nginxSocket" (dict "root" . "idle" "24h") | nindent 12 }}
        }
        {{- $kinds := "(?:health|dns_management|security|system|admin)" }}
        location ~ ^(?<old_path>/(?:api/unified/ws|api/websocket/ws(?:/{{ $kinds }})?|ws/{{ $kinds }}(?:/[A-Za-z0-9_.@-]+)?))$ {
            set $shard_path $old_path;
            {{- include "solowire.nginxSocket" (dict "root" . "idle" "24h") | nindent 12 }}
        }

        location = /_route {
            internal;
            proxy_pass http://gateway/v1/route;
            proxy_method GET;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Upgrade "";
            proxy_set_header Connection "";
            proxy_set_header X-Original-URI $request_uri;
            proxy_set_header X-Solowire-Ticket "";
            proxy_set_header X-Solowire-Dialect "";
            {{- include "solowire.nginxHeaders" . | nindent 12 }}
            proxy_read_timeout 10s;
            proxy_buffer_size 20k;
            proxy_buffers 8 20k;
        }

        location @refused {
            internal;
            default_type application/problem+json;
            add_header Retry-After $retry_after always;
            add_header WWW-Authenticate $route_challenge always;
            add_header Cache-Control no-store always;
            {{- range $status, $title := dict "400" "Bad Request" "401" "Unauthorized" "403" "Forbidden" "410" "Gone" "429" "Too Many Requests" }}
            if ($route_status = {{ $status }}) {
                return {{ $status }} '{"type":"about:blank","title":"{{ $title }}","status":{{ $status }},"code":"$refusal_code","detail":"the gateway does not let this connection in"}';
            }
            {{- end }}
            return 503 '{"type":"about:blank","title":"Service Unavailable","status":503,"code":"$refusal_code","detail":"no shard can take this connection now","hint":"try again when Retry-After says"}';
        }

        # A pod that does not answer: the shard has gone, and its users are given to others in a moment.
        location @away {
            internal;
            default_type application/problem+json;
            add_header Retry-After 1 always;
            add_header Cache-Control no-store always;
            return 503 '{"type":"about:blank","title":"Service Unavailable","status":503,"code":"upstream_unavailable","detail":"the process that serves this has gone, or is being started","hint":"try again when Retry-After says"}';
        }

        # For us, and for who scrapes metrics, and for nobody outside.
        location ~ ^/(?:v1/route|metrics)/*$ {
            return 404;
        }

        location / {
            proxy_pass http://gateway;
            proxy_read_timeout 75s;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $gateway_connection;
            proxy_set_header X-Original-URI "";
            proxy_set_header X-Solowire-Ticket "";
            proxy_set_header X-Solowire-Dialect "";
            {{- include "solowire.nginxHeaders" . | nindent 12 }}
        }
    }

    # Sockets at other paths, which only the gateway may know.
    map $http_upgrade $gateway_connection {
        default upgrade;
        "" "";
    }
}
{{- end -}}

{{/* Headers that are ours to say: from outside they count for nothing. A location that sets one has to set all. */}}
{{- define "solowire.nginxHeaders" -}}
proxy_set_header Host $http_host;
proxy_set_header X-Forwarded-For $remote_addr;
proxy_set_header X-Forwarded-Host $http_host;
proxy_set_header X-Forwarded-Proto {{ ternary "https" "http" .Values.tls.enabled }};
proxy_set_header X-Forwarded-Port "";
proxy_set_header X-Forwarded-URI "";
proxy_set_header Forwarded "";
proxy_set_header X-Solowire-Upstream "";
proxy_set_header X-Solowire-Shard "";
proxy_set_header X-Solowire-Relayed "";
{{- end -}}

{{/* A WebSocket on its way to its shard. Takes a dict: root, idle (how long it may be silent). */}}
{{- define "solowire.nginxSocket" -}}
auth_request /_route;
auth_request_set $route_upstream $upstream_http_x_solowire_upstream;
auth_request_set $route_shard $upstream_http_x_solowire_shard;
auth_request_set $route_ticket $upstream_http_x_solowire_ticket;
auth_request_set $route_dialect $upstream_http_x_solowire_dialect;
auth_request_set $route_status $upstream_status;
auth_request_set $route_retry $upstream_http_retry_after;
auth_request_set $route_code $upstream_http_x_solowire_code;
auth_request_set $route_challenge $upstream_http_www_authenticate;
error_page 401 403 500 = @refused;
error_page 502 504 = @away;
proxy_pass http://$shard$shard_path;
proxy_set_header Upgrade $http_upgrade;
proxy_set_header Connection $gateway_connection;
proxy_set_header X-Original-URI "";
proxy_set_header X-Solowire-Ticket $route_ticket;
proxy_set_header X-Solowire-Dialect $route_dialect;
# The token ends here.
proxy_set_header Authorization "";
proxy_set_header Cookie "";
{{ include "solowire.nginxHeaders" .root }}
proxy_read_timeout {{ .idle }};
proxy_send_timeout {{ .idle }};
proxy_socket_keepalive on;
proxy_buffering off;
{{- end -}}

{{/* How long a socket may be silent. As a rule it does not follow from the heartbeat, so that this may change without the edge. */}}
{{- define "solowire.idleSeconds" -}}
{{- $shard := include "solowire.settings" (dict "root" . "role" "shard") | fromJson -}}
{{- $heartbeat := dig "session" "heartbeat_interval_s" 25 $shard | float64 -}}
{{- $idle := int .Values.edge.idleSeconds | default (mulf 3.0 $heartbeat | ceil | int | max 75 | int) -}}
{{- if lt (float64 $idle) (mulf 2.0 $heartbeat) -}}
{{- fail (printf "edge.idleSeconds: %d s are less than two heartbeats (settings.session.heartbeat_interval_s is %v): raise the one or lower the other" $idle $heartbeat) -}}
{{- end -}}
{{- $idle -}}
{{- end -}}
