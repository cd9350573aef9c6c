/** With several users: who is logged in, by a token that only the server reads again, and where they work. */

import { Button, Center, Loader, Menu, PasswordInput, Select, Stack, Text, Title } from '@mantine/core'
import { IconLogout, IconUser } from '@tabler/icons-react'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { createContext, useContext, useState, type ReactNode } from 'react'
import { ui, workIn } from './api'
import { Command, Empty, Problem } from './Parts'

const REMEMBERED = 'shallop-namespace'

interface Session {
  user: string
  namespaces: string[]
  namespace: string
  choose: (namespace: string) => void
}

const Context = createContext<Session | undefined>(undefined)

/** Show the pages to whoever is logged in; to everybody where there is one user. */
export function SessionGate({ children }: { children: ReactNode }) {
  const queries = useQueryClient()
  const me = useQuery({ queryKey: ['me'], queryFn: ui.me, staleTime: 60_000 })
  const [chosen, setChosen] = useState(() => localStorage.getItem(REMEMBERED) ?? '')
  if (me.isPending) return <Center h="100vh"><Loader /></Center>
  if (me.error) return <Center h="100vh" p="lg"><Problem error={me.error} /></Center>
  if (!me.data.multi_user) return children
  if (!me.data.user) return <Login />
  const { user, namespaces } = me.data
  const namespace = namespaces.includes(chosen) ? chosen : (namespaces[0] ?? '')
  workIn(namespace)
  const choose = (name: string) => {
    localStorage.setItem(REMEMBERED, name)
    queries.removeQueries({ predicate: (query) => query.queryKey[0] !== 'me' })
    setChosen(name)
  }
  return (
    <Context.Provider key={`${user}/${namespace}`} value={{ user, namespaces, namespace, choose }}>
      {namespace ? children : (
        <Center h="100vh" p="lg">
          <Stack>
            <Empty title="No namespace is open to you yet" command={`kubectl create rolebinding NAME -n NAMESPACE --clusterrole=kubeflow-pipelines-edit --user=${user}`}>
              You are {user}. Ask an administrator for a RoleBinding in the namespace that you are to work in.
            </Empty>
            <Center><LogOut /></Center>
          </Stack>
        </Center>
      )}
    </Context.Provider>
  )
}

function Login() {
  const queries = useQueryClient()
  const [token, setToken] = useState('')
  const login = useMutation({
    mutationFn: () => ui.login(token),
    onSuccess: () => queries.resetQueries(),
  })
  return (
    <Center mih="100vh" p="lg">
      <Stack className="surface" p="xl" w={480} maw="100%" component="form" onSubmit={(event) => {
        event.preventDefault()
        login.mutate()
      }}>
        <Title order={1} fz={22}>Log in to shallop</Title>
        <Text size="sm" c="dimmed">This server has several users. Paste a token of your account; your browser keeps it until you close it or log out.</Text>
        <PasswordInput label="Token" value={token} onChange={(event) => setToken(event.currentTarget.value)} autoComplete="off" autoFocus required />
        {login.error && <Problem title="That did not work" error={login.error} />}
        <Button type="submit" loading={login.isPending} disabled={!token.trim()}>Log in</Button>
        <Text size="sm" c="dimmed">An administrator prints one with</Text>
        <Command>kubectl create token ACCOUNT --duration=24h</Command>
      </Stack>
    </Center>
  )
}

function useLogOut() {
  const queries = useQueryClient()
  return useMutation({ mutationFn: ui.logout, onSuccess: () => queries.resetQueries() })
}

function LogOut() {
  const logOut = useLogOut()
  return <Button variant="default" onClick={() => logOut.mutate()} loading={logOut.isPending}>Log out</Button>
}

/** Who one is and where; nothing where there is one user. */
export function SessionMenu() {
  const session = useContext(Context)
  const logOut = useLogOut()
  if (!session) return null
  return (
    <>
      <Select
        size="xs"
        w={170}
        aria-label="Namespace"
        data={session.namespaces}
        value={session.namespace}
        allowDeselect={false}
        searchable={session.namespaces.length > 8}
        onChange={(name) => name && session.choose(name)}
      />
      <Menu position="bottom-end">
        <Menu.Target>
          <Button size="xs" variant="subtle" color="gray" leftSection={<IconUser size={16} />} maw={260}>{session.user.replace('system:serviceaccount:', '')}</Button>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Item leftSection={<IconLogout size={16} />} onClick={() => logOut.mutate()}>Log out</Menu.Item>
        </Menu.Dropdown>
      </Menu>
    </>
  )
}
