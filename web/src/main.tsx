import '@mantine/core/styles.css'
import './app.css'
import { MantineProvider } from '@mantine/core'
import { QueryCache, QueryClient, QueryClientProvider } from '@tanstack/react-query'
import { StrictMode } from 'react'
import { createRoot } from 'react-dom/client'
import { ApiProblem } from './api'
import { App } from './App'
import { SessionGate } from './Session'
import { theme } from './theme'

const queries: QueryClient = new QueryClient({
  queryCache: new QueryCache({
    onError: (error) => {
      // The token has expired: ask who is there, which shows the login.
      if (error instanceof ApiProblem && error.status === 401) void queries.invalidateQueries({ queryKey: ['me'] })
    },
  }),
  defaultOptions: {
    queries: {
      staleTime: 1000,
      // What the server refuses it refuses again; only a lost connection is worth another try.
      retry: (count, error) => !(error instanceof ApiProblem) && count < 2,
    },
  },
})

createRoot(document.getElementById('root')!).render(
  <StrictMode>
    <MantineProvider theme={theme} defaultColorScheme="auto">
      <QueryClientProvider client={queries}>
        <SessionGate><App /></SessionGate>
      </QueryClientProvider>
    </MantineProvider>
  </StrictMode>,
)
